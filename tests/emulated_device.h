// SPDX-License-Identifier: MIT
// Stands in for csrc/device.cuh where there is no GPU: the kernels of csrc/*.cu, compiled as C++, run on the CPU. Each
// thread of a launch is a fiber that gives way at barriers and at random before atomics, so that other threads come in
// between; clusters and cooperative grids run all their blocks at once, other launches block by block.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)

namespace ascedfast {

using std::max;
using std::min;

struct Index {
    unsigned x;
};
struct alignas(16) uint4 {
    std::uint32_t x, y, z, w;
};
struct alignas(16) int4 {
    std::int32_t x, y, z, w;
};
struct alignas(16) float4 {
    float x, y, z, w;
};

namespace emulation {

struct Barrier {
    unsigned arrived = 0, turn = 0;
};
struct Warp {
    Barrier barrier;
    std::uint32_t words[32];
    unsigned running = 0;
};
struct Block {
    Barrier barrier;
    unsigned index, running;
    std::vector<Warp> warps;
    std::vector<uint4> shared;
};
struct Fiber {
    Block* block;
    unsigned thread;
    bool started = false, done = false;
    std::unique_ptr<char[]> stack;
    ucontext_t entry;
    jmp_buf state;
};

inline jmp_buf scheduler;
inline Fiber* current;
inline std::vector<Block>* together;  // the blocks that run at once
inline Barrier all_blocks;
inline std::function<void()> body;
inline std::mt19937 random;

inline void give_way() {
    if (_setjmp(current->state) == 0) _longjmp(scheduler, 1);
}

inline void arrive_and_wait(Barrier& barrier, unsigned expected) {
    const unsigned turn = barrier.turn;
    if (++barrier.arrived == expected) {
        barrier.arrived = 0;
        ++barrier.turn;
        return;
    }
    while (barrier.turn == turn) give_way();
}

inline void run_thread() {
    body();
    current->done = true;
    --current->block->running;
    --current->block->warps[current->thread / 32].running;
    _longjmp(scheduler, 1);
}

inline void maybe_give_way() {
    if (random() % 8 == 0) give_way();
}

inline Warp& warp() { return current->block->warps[current->thread / 32]; }
inline unsigned lane() { return current->thread % 32; }

// What `read` makes of the values that the 32 lanes put in.
template <class Read>
auto exchange(std::uint32_t value, Read read) {
    Warp& own = warp();
    if (own.running != 32) std::abort();  // a lane has left: undefined on a GPU
    own.words[lane()] = value;
    arrive_and_wait(own.barrier, 32);
    const auto result = read(own.words);
    arrive_and_wait(own.barrier, 32);
    return result;
}

inline Index thread_index() { return {current->thread}; }
inline Index block_index() { return {current->block->index}; }
inline Index block_size, grid_size;

inline void run_blocks(unsigned first, unsigned count, unsigned threads, std::size_t shared_bytes) {
    constexpr std::size_t kStack = 32 << 10;
    static std::vector<Fiber> fibers;  // stacks are used again
    std::vector<Block> blocks(count);
    together = &blocks;
    all_blocks = {};
    fibers.resize(std::max<std::size_t>(fibers.size(), count * threads));
    for (unsigned i = 0; i < count * threads; ++i) {
        Block& block = blocks[i / threads];
        if (i % threads == 0) {
            block.index = first + i / threads;
            block.running = threads;
            block.warps.resize(threads / 32);
            block.shared.assign(shared_bytes / 16 + 1, uint4{0xdeadbeef, 0xdeadbeef, 0xdeadbeef, 0xdeadbeef});
        }
        ++block.warps[i % threads / 32].running;
        fibers[i].block = &block;
        fibers[i].thread = i % threads;
        fibers[i].started = fibers[i].done = false;
    }
    for (bool busy = true; busy;) {
        busy = false;
        for (unsigned i = 0; i < count * threads; ++i) {
            current = &fibers[i];
            if (current->done) continue;
            busy = true;
            if (_setjmp(scheduler) != 0) continue;
            if (current->started) _longjmp(current->state, 1);
            current->started = true;
            if (!current->stack) current->stack.reset(new char[kStack]);
            getcontext(&current->entry);
            current->entry.uc_stack.ss_sp = current->stack.get();
            current->entry.uc_stack.ss_size = kStack;
            makecontext(&current->entry, run_thread, 0);
            setcontext(&current->entry);
        }
    }
}

inline long setting(const char* name, long otherwise) {
    const char* text = std::getenv(name);
    return text ? std::atol(text) : otherwise;
}

}  // namespace emulation

#define threadIdx emulation::thread_index()
#define blockIdx emulation::block_index()
#define blockDim emulation::block_size
#define gridDim emulation::grid_size

inline void __syncthreads() { emulation::arrive_and_wait(emulation::current->block->barrier, emulation::current->block->running); }
inline void __threadfence() {}
inline unsigned __ballot_sync(unsigned, bool vote) {
    return emulation::exchange(vote, [](const std::uint32_t* words) {
        unsigned all = 0;
        for (unsigned i = 0; i < 32; ++i) all |= words[i] << i;
        return all;
    });
}
inline bool __any_sync(unsigned mask, bool vote) { return __ballot_sync(mask, vote) != 0; }
inline std::uint32_t __shfl_sync(unsigned, std::uint32_t value, unsigned from) {
    return emulation::exchange(value, [=](const std::uint32_t* words) { return words[from % 32]; });
}
inline std::uint32_t __shfl_up_sync(unsigned mask, std::uint32_t value, unsigned step) {
    return __shfl_sync(mask, value, emulation::lane() < step ? emulation::lane() : emulation::lane() - step);
}
inline std::uint32_t __shfl_xor_sync(unsigned mask, std::uint32_t value, unsigned step) {
    return __shfl_sync(mask, value, emulation::lane() ^ step);
}
inline int __clz(int value) { return std::countl_zero(static_cast<unsigned>(value)); }
inline int __ffs(int value) { return __builtin_ffs(value); }
inline int __popc(unsigned value) { return std::popcount(value); }
inline std::uint32_t __float_as_uint(float value) { return std::bit_cast<std::uint32_t>(value); }
inline float __uint_as_float(std::uint32_t value) { return std::bit_cast<float>(value); }

template <class Change>
std::uint32_t atomically(std::uint32_t* at, Change change) {
    emulation::maybe_give_way();
    const std::uint32_t before = *at;
    *at = change(before);
    return before;
}
inline std::uint32_t atomicAdd(std::uint32_t* at, std::uint32_t value) {
    return atomically(at, [=](std::uint32_t old) { return old + value; });
}
inline std::uint32_t atomicOr(std::uint32_t* at, std::uint32_t value) {
    return atomically(at, [=](std::uint32_t old) { return old | value; });
}
inline std::uint32_t atomicMax(std::uint32_t* at, std::uint32_t value) {
    return atomically(at, [=](std::uint32_t old) { return max(old, value); });
}
inline std::uint32_t atomicMin(std::uint32_t* at, std::uint32_t value) {
    return atomically(at, [=](std::uint32_t old) { return min(old, value); });
}
inline std::uint32_t atomicCAS(std::uint32_t* at, std::uint32_t expected, std::uint32_t value) {
    return atomically(at, [=](std::uint32_t old) { return old == expected ? value : old; });
}

inline unsigned char* shared_memory() {
    return reinterpret_cast<unsigned char*>(emulation::current->block->shared.data());
}
inline void wait_until(const std::uint32_t* arrived, std::uint32_t target) {
    while (*arrived < target) emulation::give_way();
}
inline std::uint32_t cluster_rank() { return emulation::current->block->index - (*emulation::together)[0].index; }
inline void cluster_sync() {
    unsigned running = 0;
    for (const auto& block : *emulation::together) running += block.running;
    emulation::arrive_and_wait(emulation::all_blocks, running);
}
inline uint4 read_peer(const uint4* words, std::uint32_t rank) {
    return (*emulation::together)[rank].shared[words - emulation::current->block->shared.data()];
}

class DeviceGuard {
   public:
    explicit DeviceGuard(int device) {
        if (device != 0) throw std::runtime_error("the emulation has one device, got " + std::to_string(device));
    }
};
// What the emulated device is like, so that small inputs reach every path.
inline std::size_t shared_bytes_a_block(int) { return emulation::setting("EMULATED_SHARED_BYTES", 232448); }
inline int processors(int) { return 3; }
inline bool has_clusters(int) { return emulation::setting("EMULATED_CLUSTERS", 1); }
inline void clear_memory(void* memory, std::size_t bytes, std::uintptr_t) { std::memset(memory, 0, bytes); }

template <class... Parameters>
void launch_together(void (*kernel)(Parameters...),
                     unsigned blocks,
                     unsigned cluster,
                     unsigned threads,
                     std::size_t shared_bytes,
                     std::uintptr_t,
                     Parameters... arguments) {
    if (shared_bytes > shared_bytes_a_block(0)) throw std::runtime_error("too much shared memory");
    emulation::block_size = {threads};
    emulation::grid_size = {blocks};
    emulation::body = [&] { kernel(arguments...); };
    const unsigned step = cluster > 0 ? cluster : blocks;
    for (unsigned first = 0; first < blocks; first += step) {
        emulation::run_blocks(first, step, threads, shared_bytes);
    }
}
template <class... Parameters>
void launch(void (*kernel)(Parameters...),
            unsigned blocks,
            unsigned threads,
            std::size_t shared_bytes,
            std::uintptr_t stream,
            Parameters... arguments) {
    launch_together(kernel, blocks, 1, threads, shared_bytes, stream, arguments...);
}

}  // namespace ascedfast
