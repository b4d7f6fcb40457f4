// SPDX-License-Identifier: MIT
// The phases of label_regions.cu that one block works through in shared memory, for a whole row or for a tile of one.
#pragma once

#include "block_scan.cuh"
#include "region_bits.cuh"

namespace ascedfast {

using std::int32_t;
using std::int64_t;
using std::uint16_t;
using std::uint32_t;
using std::uint64_t;
using std::uint8_t;

constexpr uint32_t kRoot = 1u << 31, kCore = 1u << 30;  // flags in a root's entry beside its area or label
constexpr uint8_t kAnyBit = 0xff;                       // of a mask's byte

// What a row looks like and what is asked of it. A word is 32 locations of a line; each line begins a new word.
struct Task {
    const uint8_t* mask;
    int64_t row_stride, frame_stride, line_stride, stride;
    uint32_t depth, height, width, words;  // words: a line's
    int32_t* labels;                       // [rows, depth, height, width]
    uint8_t* kept;                         // the same
    uint8_t* overflow;                     // [rows] set to 0
    uint32_t least, most;                  // locations of a kept region
    uint32_t core_width;                   // 0: a kept region holds a seed
    bool corners;                          // regions also connect over edges and corners

    __host__ __device__ uint32_t row_words() const { return depth * height * words; }
    __host__ __device__ uint64_t row_size() const { return static_cast<uint64_t>(depth) * height * width; }
};

__device__ inline uint32_t pack4(uint32_t bytes) {
    bytes |= bytes >> 4;  // bits that leak in from the next byte never reach bit 0, which is all that is read
    bytes |= bytes >> 2;
    bytes |= bytes >> 1;
    return (bytes & 0x01010101u) * 0x01020408u >> 24 & 0xfu;
}

// Sixteen locations as bits, set where the byte has one of the bits asked for; zeros beyond `count`.
__device__ inline uint32_t read_bits(const uint8_t* first, int64_t stride, uint32_t count, uint8_t asked) {
    if (stride == 1 && count >= 16 && reinterpret_cast<std::uintptr_t>(first) % 16 == 0) {
        const uint4 bytes = *reinterpret_cast<const uint4*>(first);
        const uint32_t four = asked * 0x01010101u;
        return pack4(bytes.x & four) | pack4(bytes.y & four) << 4 | pack4(bytes.z & four) << 8 |
               pack4(bytes.w & four) << 12;
    }
    uint32_t bits = 0;
    for (uint32_t i = 0; i < 16; ++i) {
        if (i < count && first[i * stride] & asked) bits |= 1u << i;
    }
    return bits;
}

// The same of a line of a row from x on, zeros beyond the line. Lines are counted through the frames of the row.
__device__ inline uint32_t read_half(const Task& task, const uint8_t* row, uint32_t line, uint32_t x, uint8_t asked) {
    if (x >= task.width) return 0;
    const int64_t z = line / task.height, y = line % task.height;
    const uint8_t* first = row + z * task.frame_stride + y * task.line_stride + x * task.stride;
    return read_bits(first, task.stride, task.width - x, asked);
}

// The bits of word i of a row that make a core of its runs: seeds, or first corners of full blocks. `word` holds its
// bits, and those of the words behind it follow.
__device__ inline uint32_t cores_of(const Task& task, const uint8_t* row, uint32_t i, const uint32_t* word) {
    const uint32_t line = i / task.words, column = i % task.words;
    if (task.core_width == 0) {
        const uint32_t x = column * 32;
        return read_half(task, row, line, x, kSeed) | read_half(task, row, line, x + 16, kSeed) << 16;
    }
    return block_corners(word, line % task.height, column, task.height, task.words, task.core_width);
}

// A part of a row in shared memory: `lines` lines, of each `words` words.
struct Part {
    uint16_t* halves;  // the same memory as bits, in 16s
    uint32_t* bits;
    uint32_t* entry;  // [lines * words * kSlots]
    uint32_t lines, words;
};

// Where the part lies: lines are counted through the frames of the row.
__device__ inline void load_part(const Part& part,
                          const Task& task,
                          const uint8_t* mask,
                          uint32_t first_line,
                          uint32_t lines_there,
                          uint32_t first_word) {
    const uint32_t halves = part.words * 2;
    for (uint32_t i = threadIdx.x; i < part.lines * halves; i += blockDim.x) {
        const uint32_t line = first_line + i / halves, x = first_word * 32 + i % halves * 16;
        const uint32_t bits = i / halves < lines_there ? read_half(task, mask, line, x, kAnyBit) : 0;
        part.halves[i] = static_cast<uint16_t>(bits);
    }
    __syncthreads();
}

// Each run its own parent, except one that goes on from the word before: the first run of that stretch.
__device__ inline void start_runs(const Part& part) {
    for (uint32_t i = threadIdx.x; i < part.lines * part.words; i += blockDim.x) {
        const uint32_t column = i % part.words;
        for (uint32_t rest = part.bits[i]; rest != 0;) {
            const Run run = take_run(i, rest);
            uint32_t parent = run.slot;
            if (run.mask & 1 && column > 0 && part.bits[i - 1] >> 31) {
                uint32_t back = 1;
                while (part.bits[i - back] == kAllBits && back < column && part.bits[i - back - 1] >> 31) ++back;
                parent = slot_of(i - back, part.bits[i - back], 31);
            }
            part.entry[run.slot] = parent;
        }
    }
    __syncthreads();
}

// Joins each word's runs with those of the line before, and of the frame before where `height` says that there is one.
__device__ inline void join_part(const Part& part, uint32_t height, bool corners) {
    for (uint32_t i = threadIdx.x; i < part.lines * part.words; i += blockDim.x) {
        if (part.bits[i] == 0) continue;
        const uint32_t column = i % part.words, line = i / part.words, y = line % height;
        const Words here = words_around(part.bits, i, column, part.words);
        const auto join = [&](uint32_t beside) {
            const Words there = words_around(part.bits, beside, column, part.words);
            join_words(part.entry, i, here, beside, there, corners, all_pairs());
        };
        if (y > 0) join(i - part.words);
        if (line < height) continue;
        const uint32_t above = i - height * part.words;
        join(above);
        if (corners && y > 0) join(above - part.words);
        if (corners && y + 1 < height) join(above + part.words);
    }
    __syncthreads();
}

// Afterwards a root's entry is kRoot, another run's is its root's slot.
__device__ inline void flatten_part(const Part& part) {
    for (uint32_t i = threadIdx.x; i < part.lines * part.words; i += blockDim.x) {
        for (uint32_t rest = part.bits[i]; rest != 0;) find_root(part.entry, take_run(i, rest).slot);  // shorter paths
    }
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < part.lines * part.words; i += blockDim.x) {
        for (uint32_t rest = part.bits[i]; rest != 0;) {
            const Run run = take_run(i, rest);
            const uint32_t root = follow_to_root(part.entry, run.slot);
            if (root != run.slot) part.entry[run.slot] = root;
        }
    }
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < part.lines * part.words; i += blockDim.x) {
        for (uint32_t rest = part.bits[i]; rest != 0;) {
            const Run run = take_run(i, rest);
            if (part.entry[run.slot] == run.slot) part.entry[run.slot] = kRoot;
        }
    }
    __syncthreads();
}

__device__ inline uint32_t root_of(const uint32_t* entry, uint32_t slot) { return entry[slot] & kRoot ? slot : entry[slot]; }

// total[root] += value for each active lane; lanes that share the first one's root are summed first. All lanes call.
__device__ inline void add_to_roots(uint32_t* total, bool active, uint32_t root, uint32_t value) {
    const unsigned waiting = __ballot_sync(kAllLanes, active);
    if (waiting == 0) return;
    const unsigned leader = first_bit(waiting);
    const uint32_t common = __shfl_sync(kAllLanes, root, leader);
    const bool same = active && root == common;
    const uint32_t sum = warp_sum(same ? value : 0);
    if (threadIdx.x % 32 == leader) {
        if (sum != 0) atomicAdd(total + common, sum);
    } else if (active && !same) {
        atomicAdd(total + root, value);
    }
}

__device__ inline void mark_core(uint32_t* entry) {
    if ((*static_cast<volatile uint32_t*>(entry) & kCore) == 0) atomicOr(entry, kCore);
}

// Adds the areas up in the roots' entries.
__device__ inline void measure_part(const Part& part) {
    const uint32_t total = part.lines * part.words;
    for (uint32_t first = 0; first < total; first += blockDim.x) {
        const uint32_t i = first + threadIdx.x;
        uint32_t rest = i < total ? part.bits[i] : 0;
        while (__any_sync(kAllLanes, rest != 0)) {
            const bool active = rest != 0;
            const Run run = active ? take_run(i, rest) : Run{0, 0};
            const uint32_t root = active ? root_of(part.entry, run.slot) : 0;
            add_to_roots(part.entry, active, root, __popc(run.mask));
        }
    }
    __syncthreads();
}

__device__ inline bool size_is_right(const Task& task, uint32_t area) { return task.least <= area && area <= task.most; }

// Four neighbouring locations. `look_up` gives a slot's label, with kRoot set if its region is kept.
template <class LookUp>
__device__ void write_quad(const Task& task, uint64_t row_start, uint32_t quad, const uint32_t* bits, LookUp look_up) {
    const uint32_t quads = (task.width + 3) / 4, line = quad / quads, x = quad % quads * 4;
    const uint32_t index = line * task.words + x / 32, word = bits[index];
    uint32_t label[4] = {0, 0, 0, 0};
    for (uint32_t i = 0; i < 4; ++i) {
        const uint32_t bit = x % 32 + i;
        if ((word >> bit & 1) == 0) continue;
        label[i] = i > 0 && label[i - 1] != 0 ? label[i - 1] : look_up(slot_of(index, word, bit));
    }
    const uint64_t at = row_start + static_cast<uint64_t>(line) * task.width + x;
    int32_t* labels = task.labels + at;
    uint8_t* kept = task.kept + at;
    const bool aligned =
        reinterpret_cast<std::uintptr_t>(labels) % 16 == 0 && reinterpret_cast<std::uintptr_t>(kept) % 4 == 0;
    if (aligned && x + 4 <= task.width) {
        int4 numbers;
        numbers.x = static_cast<int32_t>(label[0] & ~kRoot);
        numbers.y = static_cast<int32_t>(label[1] & ~kRoot);
        numbers.z = static_cast<int32_t>(label[2] & ~kRoot);
        numbers.w = static_cast<int32_t>(label[3] & ~kRoot);
        *reinterpret_cast<int4*>(labels) = numbers;
        *reinterpret_cast<uint32_t*>(kept) =
            label[0] >> 31 | label[1] >> 31 << 8 | label[2] >> 31 << 16 | label[3] >> 31 << 24;
        return;
    }
    for (uint32_t i = 0; i < 4 && x + i < task.width; ++i) {
        labels[i] = static_cast<int32_t>(label[i] & ~kRoot);
        kept[i] = static_cast<uint8_t>(label[i] >> 31);
    }
}

__device__ inline uint32_t quads_of(const Task& task) { return task.depth * task.height * ((task.width + 3) / 4); }

}  // namespace ascedfast
