// SPDX-License-Identifier: MIT
// Exact median and median absolute deviation of planes, by radix selection: three passes over the values each, a histogram
// of one digit of the sortable bits a pass. The blocks of a plane's team count their shares, then each sums the counts of
// all up for itself, so that a pass costs one barrier. Two kinds of team: a thread block cluster that keeps the plane in
// shared memory, and a group of a cooperative launch that reads it from memory each time, for larger planes or older
// GPUs. Integer counts only: the same bits whatever the order.
#include <algorithm>

#include "block_scan.cuh"
#include "ops.h"

namespace ascedfast {
namespace {

using std::int64_t;
using std::uint32_t;

constexpr uint32_t kBins = 2048, kPasses = 3;
// A histogram's counts, then whether a value was NaN, then the complement of the least key above the prefix (0: none).
constexpr uint32_t kSawNan = kBins, kNextKey = kBins + 1, kHistogram = kBins + 4;
constexpr uint32_t kRing = 3;      // histograms: one that is filled, one that others may still read, one that is cleared
constexpr uint32_t kFound = 4;     // words in which a block keeps what a pass found
constexpr uint32_t kThreads = 512, kCluster = 8;
constexpr uint32_t kEach = 4;  // bins that a thread sums up
static_assert(kEach * kThreads == kBins);
constexpr uint32_t kShare = 8192;  // values that a block of a cluster should have at least, if it can
constexpr uint32_t kMostGroups = 512;
constexpr uint32_t kGroupWords = 4 + kRing * kHistogram;  // a group's scratch: arrivals, then its histograms

struct Planes {
    const float* values;
    int64_t stride;  // elements between planes
    uint32_t planes, count;
    float* statistics;  // [planes, 2]
};

struct Four {
    uint32_t word[kEach];
};

// Unsigned integers in the order of the floats; both zeros are one.
__device__ uint32_t sortable(float value) {
    const uint32_t bits = __float_as_uint(value + 0.0f);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
__device__ float unsortable(uint32_t key) {
    return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

// histogram[digit] += 1 for each active lane. Values of a map share their leading digits, so equal lanes go together.
__device__ void count_digit(uint32_t* histogram, bool active, uint32_t digit) {
    for (int round = 0; round < 2; ++round) {
        const unsigned waiting = __ballot_sync(kAllLanes, active);
        if (waiting == 0) return;
        const unsigned leader = __ffs(static_cast<int>(waiting)) - 1;
        const uint32_t common = __shfl_sync(kAllLanes, digit, leader);
        const bool same = active && digit == common;
        const unsigned group = __ballot_sync(kAllLanes, same);
        if (threadIdx.x % 32 == leader) atomicAdd(histogram + common, static_cast<uint32_t>(__popc(group)));
        active = active && !same;
    }
    if (active) atomicAdd(histogram + digit, 1u);
}

// Calls use(active, value) for the values from `first` on, `step` quads of threads apart; all lanes of a warp take part.
template <class Use>
__device__ void each_value(const float* values, uint32_t count, uint32_t thread, uint32_t threads, Use use) {
    const bool quads = reinterpret_cast<std::uintptr_t>(values) % 16 == 0;
    for (int64_t begin = 0; begin < count; begin += int64_t{4} * threads) {
        const int64_t at = begin + int64_t{4} * thread;
        float value[4] = {0, 0, 0, 0};
        if (quads && at + 4 <= count) {
            const float4 loaded = *reinterpret_cast<const float4*>(values + at);
            value[0] = loaded.x;
            value[1] = loaded.y;
            value[2] = loaded.z;
            value[3] = loaded.w;
        } else {
            for (int i = 0; i < 4; ++i) {
                if (at + i < count) value[i] = values[at + i];
            }
        }
        for (int i = 0; i < 4; ++i) use(at + i < count, value[i]);
    }
}

// The blocks of a cluster; each holds its share of the plane in shared memory.
struct ClusterTeam {
    uint32_t* ring;  // [kRing][kHistogram] in shared memory
    const float* values;
    uint32_t count, blocks;

    template <class Use>
    __device__ void each(Use use) const {
        each_value(values, count, threadIdx.x, blockDim.x, use);
    }
    __device__ uint32_t* own_histogram(uint32_t turn) const { return ring + turn % kRing * kHistogram; }
    __device__ void clear(uint32_t turn) const {
        for (uint32_t i = threadIdx.x; i < kHistogram; i += blockDim.x) own_histogram(turn)[i] = 0;
    }
    __device__ void share(uint32_t) const { cluster_sync(); }
    __device__ Four sum(uint32_t turn, uint32_t first) const {
        Four all = {};
        for (uint32_t rank = 0; rank < blocks; ++rank) {
            const uint4 word = read_peer(reinterpret_cast<const uint4*>(own_histogram(turn) + first), rank);
            all.word[0] += word.x;
            all.word[1] += word.y;
            all.word[2] += word.z;
            all.word[3] += word.w;
        }
        return all;
    }
    __device__ uint32_t largest(uint32_t turn, uint32_t word) const {
        uint32_t value = 0;
        for (uint32_t rank = 0; rank < blocks; ++rank) {
            const uint4 words = read_peer(reinterpret_cast<const uint4*>(own_histogram(turn) + kBins), rank);
            value = max(value, word == kSawNan ? words.x : words.y);
        }
        return value;
    }
};

// Some blocks of a grid whose blocks all run at once; what they share lies in global memory.
struct GroupTeam {
    uint32_t* local;     // [kHistogram] in shared memory
    uint32_t* ring;      // [kRing][kHistogram] in global memory, zero at first
    uint32_t* arrivals;  // zero at first
    const float* values;
    uint32_t count, block, blocks;
    uint32_t barriers;

    template <class Use>
    __device__ void each(Use use) const {
        each_value(values, count, block * blockDim.x + threadIdx.x, blocks * blockDim.x, use);
    }
    __device__ uint32_t* own_histogram(uint32_t) const { return local; }
    __device__ void clear(uint32_t turn) const {
        uint32_t* const histogram = ring + turn % kRing * kHistogram;
        for (uint32_t i = block * blockDim.x + threadIdx.x; i < kHistogram; i += blocks * blockDim.x) histogram[i] = 0;
    }
    __device__ void share(uint32_t turn) {
        uint32_t* const histogram = ring + turn % kRing * kHistogram;
        __syncthreads();
        for (uint32_t i = threadIdx.x; i < kHistogram; i += blockDim.x) {
            if (local[i] == 0) continue;
            if (i < kBins) {
                atomicAdd(histogram + i, local[i]);
            } else {
                atomicMax(histogram + i, local[i]);
            }
            local[i] = 0;
        }
        __threadfence();
        __syncthreads();
        ++barriers;
        if (threadIdx.x == 0) {
            atomicAdd(arrivals, 1u);
            wait_until(arrivals, barriers * blocks);
            __threadfence();
        }
        __syncthreads();
    }
    __device__ Four sum(uint32_t turn, uint32_t first) const {
        Four all = {};
        for (uint32_t i = 0; i < kEach; ++i) all.word[i] = largest(turn, first + i);
        return all;
    }
    __device__ uint32_t largest(uint32_t turn, uint32_t word) const {
        return *static_cast<volatile const uint32_t*>(ring + turn % kRing * kHistogram + word);
    }
};

// The mean of the two middle ones of n values that `map` makes of the team's; NaN if one of them is NaN.
template <class Team, class Map>
__device__ float median(Team& team, uint32_t& turn, uint32_t n, uint32_t* found, uint32_t* sums, Map map) {
    uint32_t prefix = 0, rank = (n - 1) / 2, digit = 0, at_digit = 0;
    bool nan = false;
    for (uint32_t pass = 0; pass < kPasses; ++pass, ++turn) {
        const bool last = pass + 1 == kPasses;
        const uint32_t shift = last ? 0 : 21 - 11 * pass, width = last ? 10 : 11;
        team.clear(turn + 1);  // all have read what it held: that was before the barrier of the last turn
        uint32_t* const histogram = team.own_histogram(turn);
        bool saw_nan = false;
        uint32_t next = 0;
        team.each([&](bool active, float value) {
            const float mapped = map(value);
            const uint32_t key = sortable(mapped), high = pass == 0 ? 0 : key >> (shift + width);
            if (pass == 0) saw_nan = saw_nan || (active && mapped != mapped);
            if (last && active && high > prefix) next = max(next, ~key);
            count_digit(histogram, active && high == prefix, key >> shift & ((1u << width) - 1));
        });
        if (saw_nan) atomicMax(histogram + kSawNan, 1u);
        for (int step = 16; last && step > 0; step /= 2) next = max(next, __shfl_xor_sync(kAllLanes, next, step));
        if (next != 0 && threadIdx.x % 32 == 0) atomicMax(histogram + kNextKey, next);
        team.share(turn);

        if (pass == 0) nan = team.largest(turn, kSawNan) != 0;
        const Four counts = team.sum(turn, threadIdx.x * kEach);
        const uint32_t mine = counts.word[0] + counts.word[1] + counts.word[2] + counts.word[3];
        uint32_t all = 0;
        if (threadIdx.x == 0) found[3] = kBins;
        uint32_t before = block_scan(mine, sums, all);
        for (uint32_t i = 0; i < kEach; before += counts.word[i], ++i) {
            if (rank < before || rank >= before + counts.word[i]) continue;
            found[0] = threadIdx.x * kEach + i;
            found[1] = before;
            found[2] = counts.word[i];
        }
        __syncthreads();
        digit = found[0];
        rank -= found[1];
        at_digit = found[2];
        prefix = prefix << width | digit;
        if (last) {
            for (uint32_t i = kEach; i-- > 0;) {
                const uint32_t bin = threadIdx.x * kEach + i;
                if (counts.word[i] != 0 && bin > digit) atomicMin(found + 3, bin);
            }
        }
        __syncthreads();
    }
    const uint32_t bin = found[3];
    const uint32_t beyond = bin < kBins ? (prefix & ~1023u) | bin : ~team.largest(turn - 1, kNextKey);
    __syncthreads();
    const float low = unsortable(prefix);
    const float high = n % 2 != 0 || rank + 1 < at_digit ? low : unsortable(beyond);
    if (nan) return __uint_as_float(0x7fc00000u);
    return n % 2 != 0 ? low : (low + high) * 0.5f;
}

template <class Team>
__device__ void measure_plane(Team& team, uint32_t& turn, const Planes& task, uint32_t plane, uint32_t* words, bool writes) {
    uint32_t* const sums = words + kFound;
    // A value that is not finite makes the center NaN, and that all deviations.
    const auto finite = [](float value) { return value - value == 0 ? value : __uint_as_float(0x7fc00000u); };
    const float center = median(team, turn, task.count, words, sums, finite);
    const auto deviation = [center](float value) { return fabsf(value - center); };
    const float mad = median(team, turn, task.count, words, sums, deviation);
    if (!writes || threadIdx.x != 0) return;
    task.statistics[int64_t{2} * plane] = center;
    task.statistics[int64_t{2} * plane + 1] = mad;
}

__global__ void __launch_bounds__(kThreads) medians_in_clusters(Planes task, uint32_t cluster, uint32_t share) {
    uint32_t* const ring = reinterpret_cast<uint32_t*>(shared_memory());
    uint32_t* const words = ring + kRing * kHistogram;
    float* const values = reinterpret_cast<float*>(words + kFound + kScanWords + 3);  // aligned to 16 bytes
    const uint32_t plane = blockIdx.x / cluster, rank = cluster_rank(), begin = min(task.count, rank * share);
    const uint32_t count = min(share, task.count - begin);
    const float* const source = task.values + plane * task.stride + begin;
    const uint32_t quads = reinterpret_cast<std::uintptr_t>(source) % 16 == 0 ? count / 4 : 0;
    for (uint32_t i = threadIdx.x; i < quads; i += blockDim.x) {
        reinterpret_cast<float4*>(values)[i] = reinterpret_cast<const float4*>(source)[i];
    }
    for (uint32_t i = quads * 4 + threadIdx.x; i < count; i += blockDim.x) values[i] = source[i];
    for (uint32_t i = threadIdx.x; i < kRing * kHistogram; i += blockDim.x) ring[i] = 0;
    __syncthreads();
    ClusterTeam team = {ring, values, count, cluster};
    uint32_t turn = 0;
    measure_plane(team, turn, task, plane, words, rank == 0);
    cluster_sync();  // nobody leaves while others read its memory
}

__global__ void __launch_bounds__(kThreads, 2) medians_in_groups(Planes task, uint32_t* scratch, uint32_t groups) {
    uint32_t* const local = reinterpret_cast<uint32_t*>(shared_memory());
    uint32_t* const words = local + kHistogram;
    for (uint32_t i = threadIdx.x; i < kHistogram; i += blockDim.x) local[i] = 0;
    __syncthreads();
    const uint32_t blocks = gridDim.x / groups, group = blockIdx.x / blocks, block = blockIdx.x % blocks;
    uint32_t* const arrivals = scratch + group * kGroupWords;
    GroupTeam team = {local, arrivals + 4, arrivals, nullptr, task.count, block, blocks, 0};
    uint32_t turn = 0;
    for (uint32_t plane = group; plane < task.planes; plane += groups) {
        team.values = task.values + plane * task.stride;
        measure_plane(team, turn, task, plane, words, block == 0);
    }
}

void expect(bool holds, const char* expected, int64_t got) {
    if (!holds) throw std::invalid_argument(std::string("expected ") + expected + ", got " + std::to_string(got));
}

std::size_t cluster_shared_bytes(std::size_t share) {
    return (kRing * kHistogram + kFound + kScanWords + 3 + share) * sizeof(uint32_t);
}

}  // namespace

std::size_t medians_scratch_bytes(int64_t planes) {
    return std::clamp<int64_t>(planes, 0, kMostGroups) * kGroupWords * sizeof(uint32_t);
}

void medians_cuda(const float* values,
                  int64_t stride,
                  int64_t planes,
                  int64_t count,
                  float* statistics,
                  void* scratch,
                  std::size_t scratch_bytes,
                  const Queue& queue) {
    expect(planes >= 0 && planes < int64_t{1} << 28, "0 to 268435455 planes", planes);
    if (planes == 0) return;
    expect(count > 0 && count < int64_t{1} << 31, "planes of 1 to 2147483647 values", count);
    if (!values || !statistics) throw std::invalid_argument("expected addresses of values and statistics");

    const DeviceGuard guard(queue.device);
    const auto many = static_cast<uint32_t>(planes), length = static_cast<uint32_t>(count);
    const Planes task = {values, stride, many, length, statistics};
    uint32_t cluster = 1;
    while (cluster < kCluster && cluster * kShare < length) cluster *= 2;
    const uint32_t share = ((length + cluster - 1) / cluster + 3) / 4 * 4;
    const std::size_t shared = cluster_shared_bytes(share);
    if (has_clusters(queue.device) && shared <= shared_bytes_a_block(queue.device)) {
        launch_together(
            medians_in_clusters, many * cluster, cluster, kThreads, shared, queue.stream, task, cluster, share);
        return;
    }
    const std::size_t needed = medians_scratch_bytes(planes);
    expect(scratch != nullptr && scratch_bytes >= needed, "scratch of medians_scratch_bytes", scratch_bytes);
    // Two blocks a processor are sure to run at once (launch bounds); a block should have some values to count.
    constexpr uint32_t kAtOnce = 2, kWorthABlock = 4 * kThreads;
    const uint32_t blocks = kAtOnce * processors(queue.device);
    const uint32_t groups = std::min({many, blocks, kMostGroups});
    const uint32_t each = std::min(blocks / groups, (length + kWorthABlock - 1) / kWorthABlock);
    clear_memory(scratch, groups * kGroupWords * sizeof(uint32_t), queue.stream);
    constexpr std::size_t kGroupShared = (kHistogram + kFound + kScanWords) * sizeof(uint32_t);
    uint32_t* const memory = static_cast<uint32_t*>(scratch);
    launch_together(medians_in_groups, groups * each, 0, kThreads, kGroupShared, queue.stream, task, memory, groups);
}

}  // namespace ascedfast
