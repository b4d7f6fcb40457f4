// SPDX-License-Identifier: MIT
// Region labelling on a GPU: union-find over runs of set bits (region_bits.cuh). A row whose runs fit in one block's
// shared memory takes one launch, label_row. Larger rows take five: tiles find their own regions in shared memory
// (label_tiles), unions join the tiles (merge_tiles), runs learn their root and roots their area and core (measure), roots
// are numbered (number_roots), labels written (write_labels). Only integer atomics whose order does not matter.
#include <algorithm>
#include <cmath>
#include <limits>

#include "ops.h"
#include "region_part.cuh"

namespace ascedfast {
namespace {

constexpr uint32_t kTileLines = 32, kTileWords = 8;
constexpr uint32_t kTileThreads = kTileLines * kTileWords;
constexpr uint32_t kRowThreads = 1024, kChunk = 256;  // kChunk: words (and threads) of a block of the later kernels

// Memory of the larger rows, for each row one after the other.
struct Scratch {
    uint32_t* bits;    // [row_words]
    uint32_t* parent;  // [row_words * kSlots] union-find
    uint32_t* info;    // [row_words * kSlots] area and core bit; of a numbered root its label, and kRoot if kept
    uint32_t* counts;  // [chunks] roots in each stretch of kChunk words

    __device__ Scratch of_row(uint64_t row, uint32_t row_words, uint32_t chunks) const {
        const uint64_t slots = row * row_words * kSlots;
        return {bits + row * row_words, parent + slots, info + slots, counts + row * chunks};
    }
};

__global__ void __launch_bounds__(kRowThreads, 1) label_row(Task task) {
    const uint32_t total = task.row_words();
    uint32_t* entry = reinterpret_cast<uint32_t*>(shared_memory());
    uint32_t* bits = entry + total * kSlots;
    uint32_t* sums = bits + total;
    const Part part = {reinterpret_cast<uint16_t*>(bits), bits, entry, task.depth * task.height, task.words};
    const uint8_t* const mask = task.mask + static_cast<int64_t>(blockIdx.x) * task.row_stride;
    load_part(part, task, mask, 0, part.lines, 0);
    start_runs(part);
    join_part(part, task.height, task.corners);
    flatten_part(part);
    measure_part(part);

    for (uint32_t i = threadIdx.x; i < total; i += blockDim.x) {
        const uint32_t cores = bits[i] == 0 ? 0 : cores_of(task, mask, i, bits + i);
        for (uint32_t rest = cores == 0 ? 0 : bits[i]; rest != 0;) {
            const Run run = take_run(i, rest);
            if (run.mask & cores) mark_core(entry + root_of(entry, run.slot));
        }
    }
    __syncthreads();

    // Each thread numbers the roots of a stretch of words, so that numbers rise in raster order.
    const uint32_t stretch = (total + blockDim.x - 1) / blockDim.x;
    const uint32_t begin = min(total, threadIdx.x * stretch), end = min(total, begin + stretch);
    uint32_t roots = 0, all = 0;
    for (uint32_t i = begin; i < end; ++i) {
        for (uint32_t rest = bits[i]; rest != 0;) roots += entry[take_run(i, rest).slot] >> 31;
    }
    uint32_t label = block_scan(roots, sums, all);
    for (uint32_t i = begin; i < end; ++i) {
        for (uint32_t rest = bits[i]; rest != 0;) {
            uint32_t& own = entry[take_run(i, rest).slot];
            if ((own & kRoot) == 0) continue;
            const bool keep = own & kCore && size_is_right(task, own & ~(kRoot | kCore));
            own = kRoot | (keep ? kCore : 0) | ++label;
        }
    }
    __syncthreads();

    if (threadIdx.x == 0) task.overflow[blockIdx.x] = 0;
    const uint64_t row_start = blockIdx.x * task.row_size();
    for (uint32_t quad = threadIdx.x; quad < quads_of(task); quad += blockDim.x) {
        write_quad(task, row_start, quad, bits, [&](uint32_t slot) {
            const uint32_t found = entry[root_of(entry, slot)];
            return (found & ~(kRoot | kCore)) | (found & kCore) << 1;
        });
    }
}

__global__ void __launch_bounds__(kTileThreads)
    label_tiles(Task task, Scratch scratch, uint32_t tiles_across, uint32_t tiles_down, uint32_t chunks) {
    uint32_t* entry = reinterpret_cast<uint32_t*>(shared_memory());
    uint32_t* bits = entry + kTileThreads * kSlots;
    const Part part = {reinterpret_cast<uint16_t*>(bits), bits, entry, kTileLines, kTileWords};
    const uint32_t across = blockIdx.x % tiles_across, frame_tile = blockIdx.x / tiles_across;
    const uint32_t down = frame_tile % tiles_down, frame = frame_tile / tiles_down % task.depth;
    const uint64_t row = frame_tile / tiles_down / task.depth;
    const uint32_t first_y = down * kTileLines, first_line = frame * task.height + first_y;
    const uint32_t lines_there = min(kTileLines, task.height - first_y), first_word = across * kTileWords;
    load_part(part, task, task.mask + static_cast<int64_t>(row) * task.row_stride, first_line, lines_there, first_word);
    start_runs(part);
    join_part(part, kTileLines, task.corners);
    flatten_part(part);
    measure_part(part);

    const Scratch own = scratch.of_row(row, task.row_words(), chunks);
    const uint32_t i = threadIdx.x, line = i / kTileWords, column = first_word + i % kTileWords;
    if (line >= lines_there || column >= task.words) return;
    const auto word_of = [&](uint32_t word) {
        return (first_line + word / kTileWords) * task.words + first_word + word % kTileWords;
    };
    const uint32_t index = word_of(i);
    own.bits[index] = bits[i];
    for (uint32_t rest = bits[i]; rest != 0;) {
        const uint32_t slot = take_run(i, rest).slot, found = entry[slot], root = root_of(entry, slot);
        own.parent[index * kSlots + slot % kSlots] = word_of(root / kSlots) * kSlots + root % kSlots;
        own.info[index * kSlots + slot % kSlots] = found & kRoot ? found & ~kRoot : 0;
    }
}

__global__ void __launch_bounds__(kChunk) merge_tiles(Task task, Scratch scratch, uint32_t chunks) {
    const uint32_t total = task.row_words(), at = blockIdx.x % chunks * kChunk + threadIdx.x;
    const Scratch own = scratch.of_row(blockIdx.x / chunks, total, chunks);
    if (at >= total || own.bits[at] == 0) return;
    const uint32_t column = at % task.words, line = at / task.words, y = line % task.height;
    const bool left_border = column % kTileWords == 0, right_border = (column + 1) % kTileWords == 0;
    const Words here = words_around(own.bits, at, column, task.words);
    if (left_border && here.word & 1 && here.left >> 31) {
        unite(own.parent, at * kSlots, slot_of(at - 1, here.left, 31));
    }
    const auto join = [&](uint32_t beside, Pairs pairs) {
        const Words there = words_around(own.bits, beside, column, task.words);
        join_words(own.parent, at, here, beside, there, task.corners, pairs);
    };
    if (y > 0) {
        // Inside a tile only what lies across its left and right border is still apart.
        const Pairs borders = {0, left_border ? 1u : 0u, right_border ? 1u << 31 : 0u};
        join(at - task.words, y % kTileLines == 0 ? all_pairs() : borders);
    }
    if (line < task.height) return;
    const uint32_t above = at - task.height * task.words;
    join(above, all_pairs());
    if (task.corners && y > 0) join(above - task.words, all_pairs());
    if (task.corners && y + 1 < task.height) join(above + task.words, all_pairs());
}

__global__ void __launch_bounds__(kChunk) measure(Task task, Scratch scratch, uint32_t chunks) {
    const uint32_t total = task.row_words(), chunk = blockIdx.x % chunks, at = chunk * kChunk + threadIdx.x;
    const uint32_t row = blockIdx.x / chunks;
    const Scratch own = scratch.of_row(row, total, chunks);
    uint32_t rest = at < total ? own.bits[at] : 0;
    const uint8_t* const mask = task.mask + static_cast<int64_t>(row) * task.row_stride;
    const uint32_t cores = rest == 0 ? 0 : cores_of(task, mask, at, own.bits + at);
    uint32_t roots = 0;
    while (__any_sync(kAllLanes, rest != 0)) {
        const bool active = rest != 0;
        const Run run = active ? take_run(at, rest) : Run{0, 0};
        const uint32_t root = active ? follow_to_root(own.parent, run.slot) : 0;
        const bool is_root = active && root == run.slot;
        roots += is_root;
        // Tiles left an area at their own roots; only roots of the row still receive any.
        const uint32_t area = active && !is_root ? own.info[run.slot] : 0;
        if (active && !is_root) own.parent[run.slot] = root;
        add_to_roots(own.info, area != 0, root, area);
        if (run.mask & cores) mark_core(own.info + root);
    }
    uint32_t all = 0;
    block_scan(roots, reinterpret_cast<uint32_t*>(shared_memory()), all);
    if (threadIdx.x == 0) own.counts[chunk] = all;
}

__global__ void __launch_bounds__(kChunk) number_roots(Task task, Scratch scratch, uint32_t chunks) {
    uint32_t* sums = reinterpret_cast<uint32_t*>(shared_memory());
    const uint32_t total = task.row_words(), chunk = blockIdx.x % chunks, at = chunk * kChunk + threadIdx.x;
    const Scratch own = scratch.of_row(blockIdx.x / chunks, total, chunks);
    uint32_t earlier = 0, all = 0, before = 0;
    for (uint32_t i = threadIdx.x; i < chunk; i += blockDim.x) earlier += own.counts[i];
    block_scan(earlier, sums, before);
    const uint32_t word = at < total ? own.bits[at] : 0;
    uint32_t roots = 0;
    for (uint32_t rest = word; rest != 0;) {
        const uint32_t slot = take_run(at, rest).slot;
        roots += own.parent[slot] == slot;
    }
    uint32_t label = before + block_scan(roots, sums, all);
    for (uint32_t rest = word; rest != 0;) {
        const uint32_t slot = take_run(at, rest).slot;
        if (own.parent[slot] != slot) continue;
        const uint32_t found = own.info[slot];
        const bool keep = found & kCore && size_is_right(task, found & ~kCore);
        own.info[slot] = (keep ? kRoot : 0) | ++label;
    }
}

__global__ void __launch_bounds__(kChunk)
    write_labels(Task task, Scratch scratch, uint32_t chunks, uint32_t blocks_a_row) {
    const uint64_t row = blockIdx.x / blocks_a_row;
    const uint32_t quad = blockIdx.x % blocks_a_row * kChunk + threadIdx.x;
    if (quad >= quads_of(task)) return;
    if (quad == 0) task.overflow[row] = 0;
    const Scratch own = scratch.of_row(row, task.row_words(), chunks);
    write_quad(task, row * task.row_size(), quad, own.bits, [&](uint32_t slot) {
        return own.info[own.parent[slot]];
    });
}

struct Sizes {
    std::size_t words, slots, chunks;  // of a row
    std::size_t bytes(std::size_t rows) const { return rows * (words + 2 * slots + chunks) * sizeof(uint32_t); }
};

Sizes sizes_of(const Dims& shape) {
    const std::size_t words = static_cast<std::size_t>(shape[1] * shape[2] * ((shape[3] + 31) / 32));
    return {words, words * kSlots, (words + kChunk - 1) / kChunk};
}

std::size_t row_shared_bytes(std::size_t row_words) {
    return (row_words * (kSlots + 1) + kScanWords) * sizeof(uint32_t);
}

void refuse(const char* expected, std::int64_t got) {
    throw std::invalid_argument(std::string("expected ") + expected + ", got " + std::to_string(got));
}

// A strict bound as the smallest or largest whole number inside it, in 32 bits.
uint32_t whole(double bound) {
    return static_cast<uint32_t>(std::clamp(bound, 0.0, double{std::numeric_limits<uint32_t>::max()}));
}

Task task_of(const uint8_t* mask,
             const Dims& strides,
             const Dims& shape,
             int32_t* labels,
             uint8_t* kept,
             uint8_t* overflow,
             const RegionRules& rules) {
    const auto size = [&](int axis) { return static_cast<uint32_t>(shape[axis]); };
    const bool none = rules.max_area <= 0;  // as whole numbers the bounds could not say so
    return {mask,
            strides[0],
            strides[1],
            strides[2],
            strides[3],
            size(1),
            size(2),
            size(3),
            (size(3) + 31) / 32,
            labels,
            kept,
            overflow,
            none ? 1 : whole(std::floor(rules.min_area) + 1),
            none ? 0 : whole(std::ceil(rules.max_area) - 1),
            static_cast<uint32_t>(std::min<int64_t>(rules.core_width, std::numeric_limits<int32_t>::max())),
            rules.connectivity == 8 || rules.connectivity == 26};
}

unsigned grid(std::size_t blocks) {
    if (blocks > std::numeric_limits<int32_t>::max()) refuse("at most 2147483647 thread blocks", blocks);
    return static_cast<unsigned>(blocks);
}

}  // namespace

std::size_t label_regions_scratch_bytes(const Dims& shape) {
    constexpr std::size_t kSharedEverywhere = 64 << 10;
    const Sizes sizes = sizes_of(shape);
    return row_shared_bytes(sizes.words) <= kSharedEverywhere ? 0 : sizes.bytes(shape[0]);
}

void label_regions_cuda(const uint8_t* mask,
                        const Dims& strides,
                        const Dims& shape,
                        int32_t* labels,
                        uint8_t* kept,
                        uint8_t* overflow,
                        const RegionRules& rules,
                        void* scratch,
                        std::size_t scratch_bytes,
                        const Queue& queue) {
    check_label_regions(shape, rules, mask && labels && kept && overflow);
    if (std::find(shape.begin(), shape.end(), 0) != shape.end()) return;
    constexpr int64_t kMostLocations = (int64_t{1} << 30) - 1, kMostWords = (int64_t{1} << 27) - 1;
    const Sizes sizes = sizes_of(shape);
    const double locations = static_cast<double>(shape[1]) * shape[2] * shape[3];
    if (locations > kMostLocations) refuse("at most 1073741823 locations a row", shape[1] * shape[2] * shape[3]);
    if (sizes.words > kMostWords) refuse("at most 134217727 stretches of 32 locations a row", sizes.words);

    const DeviceGuard guard(queue.device);
    const Task task = task_of(mask, strides, shape, labels, kept, overflow, rules);
    const std::size_t rows = shape[0], shared = row_shared_bytes(sizes.words);
    if (shared <= shared_bytes_a_block(queue.device)) {
        launch(label_row, grid(rows), kRowThreads, shared, queue.stream, task);
        return;
    }
    if (scratch_bytes < sizes.bytes(rows) || scratch == nullptr) {
        refuse("scratch of label_regions_scratch_bytes(shape)", scratch_bytes);
    }
    uint32_t* const memory = static_cast<uint32_t*>(scratch);
    uint32_t* const parent = memory + rows * sizes.words;
    uint32_t* const info = parent + rows * sizes.slots;
    const Scratch arrays = {memory, parent, info, info + rows * sizes.slots};
    const uint32_t across = (task.words + kTileWords - 1) / kTileWords;
    const uint32_t down = (task.height + kTileLines - 1) / kTileLines;
    const uint32_t chunks = static_cast<uint32_t>(sizes.chunks);
    const uint32_t quads = task.depth * task.height * ((task.width + 3) / 4);
    const uint32_t writers = (quads + kChunk - 1) / kChunk;
    const unsigned tiles = grid(rows * task.depth * down * across), stretches = grid(rows * chunks);
    constexpr std::size_t kTileBytes = kTileThreads * (kSlots + 1) * sizeof(uint32_t);
    constexpr std::size_t kScanBytes = kScanWords * sizeof(uint32_t);
    launch(label_tiles, tiles, kTileThreads, kTileBytes, queue.stream, task, arrays, across, down, chunks);
    launch(merge_tiles, stretches, kChunk, 0, queue.stream, task, arrays, chunks);
    launch(measure, stretches, kChunk, kScanBytes, queue.stream, task, arrays, chunks);
    launch(number_roots, stretches, kChunk, kScanBytes, queue.stream, task, arrays, chunks);
    launch(write_labels, grid(rows * writers), kChunk, 0, queue.stream, task, arrays, chunks, writers);
}

}  // namespace ascedfast
