// SPDX-License-Identifier: MIT
// The parts of label_regions.cu that work on one word: 32 locations of a line as bits. A stretch of set bits inside a
// word is a run; runs are the nodes of a union-find. Two runs of a word begin at least two bits apart, so half a bit's
// position names a run: 16 slots a word, in raster order. A parent is never a larger slot than its child, hence a root is
// its region's first run in raster order, whatever the order in which threads came.
#pragma once

#include "device.cuh"

namespace ascedfast {

constexpr std::uint32_t kSlots = 16;  // of a word
constexpr std::uint32_t kAllBits = 0xffffffffu;

// A word of a line and the words beside it, 0 beyond the line.
struct Words {
    std::uint32_t word, left, right;
};

__device__ inline Words words_around(const std::uint32_t* bits,
                                     std::uint32_t index,
                                     std::uint32_t column,
                                     std::uint32_t words) {
    return {bits[index], column > 0 ? bits[index - 1] : 0, column + 1 < words ? bits[index + 1] : 0};
}

__device__ inline std::uint32_t first_bit(std::uint32_t word) { return __ffs(static_cast<int>(word)) - 1; }

// The slot of the run that holds bit x, which is set.
__device__ inline std::uint32_t slot_of(std::uint32_t index, std::uint32_t word, std::uint32_t x) {
    const std::uint32_t begin = x + 1 - __clz(static_cast<int>(~(word << (31 - x))));
    return index * kSlots + begin / 2;
}

struct Run {
    std::uint32_t slot, mask;
};

// Takes the first run out of `rest`, which holds whole runs only.
__device__ inline Run take_run(std::uint32_t index, std::uint32_t& rest) {
    const std::uint32_t begin = first_bit(rest);
    const std::uint32_t mask = rest & ~(rest + (1u << begin));
    rest &= ~mask;
    return {index * kSlots + begin / 2, mask};
}

// The root, halving the path. Only roots are ever hooked (unite), so that a plain write to another slot loses nothing.
__device__ inline std::uint32_t find_root(volatile std::uint32_t* parent, std::uint32_t slot) {
    std::uint32_t at = parent[slot];
    if (at == slot) return at;
    std::uint32_t before = slot, above = parent[at];
    while (above < at) {
        parent[before] = above;
        before = at;
        at = above;
        above = parent[at];
    }
    return at;
}

// The same without touching the path.
__device__ inline std::uint32_t follow_to_root(volatile const std::uint32_t* parent, std::uint32_t slot) {
    std::uint32_t at = parent[slot];
    for (std::uint32_t above = parent[at]; above < at; above = parent[at]) at = above;
    return at;
}

__device__ inline void unite(std::uint32_t* parent, std::uint32_t a, std::uint32_t b) {
    a = find_root(parent, a);
    b = find_root(parent, b);
    while (a != b) {
        const std::uint32_t low = a < b ? a : b, high = a < b ? b : a;
        const std::uint32_t found = atomicCAS(parent + high, high, low);
        if (found == high) return;
        a = low;
        b = found;
    }
}

// Which touching pairs of a word and the line beside it are to be joined, by the bit in the word.
struct Pairs {
    std::uint32_t across, left, right;  // same column, one column to the left, one to the right
};
__device__ inline Pairs all_pairs() { return {kAllBits, kAllBits, kAllBits}; }

// Joins the runs of word `at` with those of word `beside`, which lies in the same column of another line. One union a
// touching pair of runs: where their overlap begins, or where only corners touch.
__device__ inline void join_words(std::uint32_t* parent,
                                  std::uint32_t at,
                                  Words here,
                                  std::uint32_t beside,
                                  Words there,
                                  bool corners,
                                  Pairs pairs) {
    const std::uint32_t overlap = here.word & there.word;
    const std::uint32_t before = overlap << 1 | (here.left & there.left) >> 31;
    for (std::uint32_t rest = overlap & ~before & pairs.across; rest != 0; rest &= rest - 1) {
        const std::uint32_t x = first_bit(rest);
        unite(parent, slot_of(at, here.word, x), slot_of(beside, there.word, x));
    }
    if (!corners) return;
    // Where the location beside or the neighbour in the line is set too, others have joined the pair.
    const std::uint32_t alone = here.word & ~there.word;
    std::uint32_t rest = alone & ~(here.word << 1 | here.left >> 31) & (there.word << 1 | there.left >> 31);
    for (rest &= pairs.left; rest != 0; rest &= rest - 1) {
        const std::uint32_t x = first_bit(rest);
        const std::uint32_t other =
            x > 0 ? slot_of(beside, there.word, x - 1) : slot_of(beside - 1, there.left, 31);
        unite(parent, slot_of(at, here.word, x), other);
    }
    rest = alone & ~(here.word >> 1 | here.right << 31) & (there.word >> 1 | there.right << 31);
    for (rest &= pairs.right; rest != 0; rest &= rest - 1) {
        const std::uint32_t x = first_bit(rest);
        const std::uint32_t other =
            x < 31 ? slot_of(beside, there.word, x + 1) : slot_of(beside + 1, there.right, 0);
        unite(parent, slot_of(at, here.word, x), other);
    }
}

// The bits of a word that begin `width` set locations of its line.
__device__ inline std::uint32_t begins_of_width(const std::uint32_t* word,
                                                std::uint32_t column,
                                                std::uint32_t words,
                                                std::uint32_t width) {
    if (width <= 32) {
        std::uint64_t both = column + 1 < words ? static_cast<std::uint64_t>(word[1]) << 32 | word[0] : word[0];
        for (std::uint32_t span = 1; span < width;) {
            const std::uint32_t shift = min(span, width - span);
            both &= both >> shift;
            span += shift;
        }
        return static_cast<std::uint32_t>(both);
    }
    std::uint32_t after = 0;  // set locations that follow this word without a gap
    for (std::uint32_t next = 1; column + next < words && after < width; ++next) {
        const std::uint32_t more = word[next] == kAllBits ? 32 : first_bit(~word[next]);
        after += more;
        if (more < 32) break;
    }
    const std::uint32_t tail = word[0] == kAllBits ? 32 : __clz(static_cast<int>(~word[0]));
    // Bit i qualifies if bits i..31 are set and 32 - i + after >= width.
    if (tail == 0 || tail + after < width) return 0;
    const std::uint32_t from = kAllBits << (32 - tail);
    const std::uint32_t last = min(31u, 32 + after - width);
    return from & kAllBits >> (31 - last);
}

// The bits of a word that are the first corner of a full width x width block of one frame. Words of the frame's further
// lines follow at distance `words`; y is the word's line in the frame.
__device__ inline std::uint32_t block_corners(const std::uint32_t* word,
                                              std::uint32_t y,
                                              std::uint32_t column,
                                              std::uint32_t height,
                                              std::uint32_t words,
                                              std::uint32_t width) {
    if (width == 1) return *word;
    if (width > height - y) return 0;
    std::uint32_t corners = *word;
    for (std::uint32_t step = 0; step < width && corners != 0; ++step) {
        corners &= begins_of_width(word + static_cast<std::size_t>(step) * words, column, words, width);
    }
    return corners;
}

}  // namespace ascedfast
