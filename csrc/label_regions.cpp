// SPDX-License-Identifier: MIT
// Region labelling on runs: each line of the mask becomes bits, each stretch of set bits one run, and a union-find
// joins runs that touch. Runs are numbered in raster order and a root is always its tree's smallest run, so that
// numbering the roots in order numbers the regions by their first location.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "ops.h"

#if !defined(__BYTE_ORDER__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "label_regions.cpp packs eight mask bytes at a time and expects a little-endian machine"
#endif

namespace ascedfast {
namespace {

using std::int64_t;
using std::uint64_t;
using std::uint8_t;

constexpr int64_t kWordBits = 64;

struct Run {
    int64_t begin, end;  // columns, half open
};

// What one row needs; reused by the next one.
struct Workspace {
    std::vector<uint64_t> plane;       // [height, words] one frame of the mask, a bit a location
    std::vector<Run> runs;             // [runs] in raster order
    std::vector<int64_t> first_run;    // [depth * height + 1] where each line's runs start
    std::vector<uint8_t> run_core;     // [runs] 1 where the run meets the eroded mask, or holds a seed
    std::vector<int64_t> parent;       // [runs] union-find, parent[i] <= i; later the region of each run
    std::vector<int64_t> area;         // [regions]
    std::vector<uint8_t> region_kept;  // [regions] 1 where the region holds a core, later where it is kept
};

// Bit i of the result: byte i is nonzero.
inline uint64_t pack8(const uint8_t* bytes) {
    uint64_t v;
    std::memcpy(&v, bytes, 8);
    v |= v >> 4;  // bits that leak in from the next byte never reach bit 0, which is all that is read
    v |= v >> 2;
    v |= v >> 1;
    return ((v & 0x0101010101010101u) * 0x0102040810204080u) >> 56;
}

inline uint64_t pack64(const uint8_t* bytes) {
    uint64_t word = 0;
    for (int i = 0; i < 8; ++i) word |= pack8(bytes + 8 * i) << (8 * i);
    return word;
}

void pack_line(const uint8_t* line, int64_t stride, int64_t width, uint64_t* words) {
    for (int64_t x = 0; x < width; x += kWordBits) {
        const int64_t count = std::min(kWordBits, width - x);
        if (stride == 1 && count == kWordBits) {
            *words++ = pack64(line + x);
            continue;
        }
        uint8_t bytes[kWordBits] = {};
        for (int64_t i = 0; i < count; ++i) bytes[i] = line[(x + i) * stride];
        *words++ = pack64(bytes);
    }
}

// Appends the runs of one line. A bit that differs from the one before it begins a run or ends it.
void append_runs(const uint64_t* words, int64_t count, int64_t width, std::vector<Run>& runs) {
    uint64_t last = 0;
    int64_t begin = -1;
    for (int64_t i = 0; i < count; ++i) {
        uint64_t edges = words[i] ^ (words[i] << 1 | last);
        last = words[i] >> (kWordBits - 1);
        for (; edges != 0; edges &= edges - 1) {
            const int64_t x = i * kWordBits + __builtin_ctzll(edges);
            if (begin < 0) {
                begin = x;
            } else {
                runs.push_back({begin, x});
                begin = -1;
            }
        }
    }
    if (begin >= 0) runs.push_back({begin, width});
}

// Bit x of a line becomes the conjunction of bits x and x + shift; beyond the line they are 0.
void and_shifted(uint64_t* words, int64_t count, int64_t shift) {
    const int64_t skip = shift / kWordBits;
    const int64_t bits = shift % kWordBits;
    for (int64_t i = 0; i < count; ++i) {
        const uint64_t low = i + skip < count ? words[i + skip] : 0;
        const uint64_t high = i + skip + 1 < count ? words[i + skip + 1] : 0;
        words[i] &= bits == 0 ? low : (low >> bits | high << (kWordBits - bits));
    }
}

// Leaves the bits that are the first corner of a full width x width block. The span doubles: log2(width) passes.
void erode(std::vector<uint64_t>& plane, int64_t height, int64_t words, int64_t width) {
    for (int64_t span = 1; span < width;) {
        const int64_t shift = std::min(span, width - span);
        for (int64_t y = 0; y < height; ++y) and_shifted(&plane[y * words], words, shift);
        for (int64_t y = 0; y < height; ++y) {
            uint64_t* line = &plane[y * words];
            if (shift >= height - y) {
                std::fill_n(line, words, 0);
                continue;
            }
            const uint64_t* below = line + shift * words;
            for (int64_t i = 0; i < words; ++i) line[i] &= below[i];
        }
        span += shift;
    }
}

bool any_bit(const uint64_t* words, Run run) {
    const int64_t first = run.begin / kWordBits, last = (run.end - 1) / kWordBits;
    const uint64_t from_begin = ~uint64_t{0} << run.begin % kWordBits;
    const uint64_t to_end = ~uint64_t{0} >> (kWordBits - 1 - (run.end - 1) % kWordBits);
    if (first == last) return words[first] & from_begin & to_end;
    if (words[first] & from_begin || words[last] & to_end) return true;
    return std::any_of(words + first + 1, words + last, [](uint64_t word) { return word != 0; });
}

bool any_seed(const uint8_t* line, int64_t stride, Run run) {
    uint8_t all = 0;
    for (int64_t x = run.begin; x < run.end; ++x) all |= line[x * stride];
    return all & kSeed;
}

// Rem's union: interleaves the two climbs and shortens both paths. Parents only ever point to smaller runs.
inline void unite(int64_t* parent, int64_t a, int64_t b) {
    while (parent[a] != parent[b]) {
        if (parent[a] < parent[b]) std::swap(a, b);
        const int64_t above = parent[a];
        parent[a] = parent[b];
        if (above == a) return;
        a = above;
    }
}

// Joins each run of line b with the runs of line a within `reach` columns (1: diagonals touch).
void unite_lines(Workspace& space, int64_t a, int64_t b, int64_t reach) {
    const Run* runs = space.runs.data();
    int64_t i = space.first_run[a], j = space.first_run[b];
    const int64_t i_end = space.first_run[a + 1], j_end = space.first_run[b + 1];
    while (i < i_end && j < j_end) {
        if (runs[i].begin < runs[j].end + reach && runs[j].begin < runs[i].end + reach) {
            unite(space.parent.data(), i, j);
        }
        // Runs of a line lie at least one column apart, so the one that ends first can meet nothing more.
        runs[i].end < runs[j].end ? ++i : ++j;
    }
}

// Fills runs, first_run and run_core from one row of the mask.
void find_runs(Workspace& space, const uint8_t* mask, const Dims& strides, const Dims& shape, int64_t core_width) {
    const int64_t depth = shape[1], height = shape[2], width = shape[3];
    const int64_t words = (width + kWordBits - 1) / kWordBits;
    space.plane.resize(height * words);
    space.runs.clear();
    space.run_core.clear();
    space.first_run.assign(1, 0);
    for (int64_t z = 0; z < depth; ++z) {
        const int64_t frame_line = z * height;
        for (int64_t y = 0; y < height; ++y) {
            uint64_t* line = &space.plane[y * words];
            pack_line(mask + z * strides[1] + y * strides[2], strides[3], width, line);
            append_runs(line, words, width, space.runs);
            space.first_run.push_back(static_cast<int64_t>(space.runs.size()));
        }
        space.run_core.resize(space.runs.size(), core_width == 1);
        if (core_width == 1) continue;
        if (core_width > 1) erode(space.plane, height, words, core_width);
        for (int64_t y = 0; y < height; ++y) {
            const uint64_t* line = &space.plane[y * words];
            const uint8_t* bytes = mask + z * strides[1] + y * strides[2];
            for (int64_t i = space.first_run[frame_line + y]; i < space.first_run[frame_line + y + 1]; ++i) {
                const Run run = space.runs[i];
                space.run_core[i] = core_width == 0 ? any_seed(bytes, strides[3], run)
                                                    : run.end - run.begin >= core_width && any_bit(line, run);
            }
        }
    }
}

void join_runs(Workspace& space, const Dims& shape, int connectivity) {
    const int64_t depth = shape[1], height = shape[2];
    const int64_t reach = connectivity == 8 || connectivity == 26;
    space.parent.resize(space.runs.size());
    std::iota(space.parent.begin(), space.parent.end(), int64_t{0});
    for (int64_t z = 0; z < depth; ++z) {
        for (int64_t y = 0; y < height; ++y) {
            const int64_t line = z * height + y;
            if (y > 0) unite_lines(space, line - 1, line, reach);
            if (z == 0) continue;
            const int64_t first = std::max<int64_t>(y - reach, 0), last = std::min(y + reach, height - 1);
            for (int64_t above = first; above <= last; ++above) {
                unite_lines(space, (z - 1) * height + above, line, reach);
            }
        }
    }
}

// Turns parents into region indices, from 0, and decides which regions the rules keep.
void number_regions(Workspace& space, const RegionRules& rules) {
    space.area.clear();
    space.region_kept.clear();
    for (int64_t i = 0; i < static_cast<int64_t>(space.runs.size()); ++i) {
        int64_t& region = space.parent[i];
        if (region == i) {
            region = static_cast<int64_t>(space.area.size());
            space.area.push_back(0);
            space.region_kept.push_back(0);
        } else {
            region = space.parent[region];
        }
        space.area[region] += space.runs[i].end - space.runs[i].begin;
        space.region_kept[region] |= space.run_core[i];
    }
    if (space.area.size() > std::numeric_limits<std::int32_t>::max()) {
        throw std::invalid_argument("expected at most 2147483647 regions a row, got " +
                                    std::to_string(space.area.size()));
    }
    for (size_t region = 0; region < space.area.size(); ++region) {
        const double area = static_cast<double>(space.area[region]);
        space.region_kept[region] &= rules.min_area < area && area < rules.max_area;
    }
}

void write_row(const Workspace& space, const Dims& shape, std::int32_t* labels, uint8_t* kept) {
    const int64_t lines = shape[1] * shape[2], width = shape[3];
    for (int64_t line = 0; line < lines; ++line, labels += width, kept += width) {
        std::fill_n(labels, width, 0);
        std::fill_n(kept, width, uint8_t{0});
        for (int64_t i = space.first_run[line]; i < space.first_run[line + 1]; ++i) {
            const auto [begin, end] = space.runs[i];
            const int64_t region = space.parent[i];
            std::fill(labels + begin, labels + end, static_cast<std::int32_t>(region + 1));
            if (space.region_kept[region]) std::fill(kept + begin, kept + end, uint8_t{1});
        }
    }
}

void expect(bool holds, const char* expected, const std::string& got) {
    if (!holds) throw std::invalid_argument(std::string("expected ") + expected + ", got " + got);
}

}  // namespace

void check_label_regions(const Dims& shape, const RegionRules& rules, bool addresses_given) {
    for (const int64_t size : shape) expect(size >= 0, "sizes of at least 0", std::to_string(size));
    const int connectivity = rules.connectivity;
    const bool flat = connectivity == 4 || connectivity == 8;
    const bool deep = connectivity == 6 || connectivity == 26;  // at depth 1 they equal 4 and 8
    expect(deep || (flat && shape[1] <= 1),
           shape[1] > 1 ? "connectivity 6 or 26" : "connectivity 4, 8, 6 or 26",
           std::to_string(connectivity) + " with depth " + std::to_string(shape[1]));
    expect(!std::isnan(rules.min_area), "min_area to be a number", "nan");
    expect(!std::isnan(rules.max_area), "max_area to be a number", "nan");
    expect(rules.core_width >= 0, "core_width of at least 0", std::to_string(rules.core_width));
    const bool empty = std::find(shape.begin(), shape.end(), 0) != shape.end();
    expect(empty || addresses_given, "addresses of mask, labels and kept", "a null pointer");
}

void label_regions(const uint8_t* mask,
                   const Dims& strides,
                   const Dims& shape,
                   std::int32_t* labels,
                   uint8_t* kept,
                   const RegionRules& rules) {
    check_label_regions(shape, rules, mask && labels && kept);
    if (std::find(shape.begin(), shape.end(), 0) != shape.end()) return;

    const int64_t row_size = shape[1] * shape[2] * shape[3];
    Workspace space;
    for (int64_t row = 0; row < shape[0]; ++row) {
        find_runs(space, mask + row * strides[0], strides, shape, rules.core_width);
        join_runs(space, shape, rules.connectivity);
        number_regions(space, rules);
        write_row(space, shape, labels + row * row_size, kept + row * row_size);
    }
}

}  // namespace ascedfast
