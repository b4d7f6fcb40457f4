// SPDX-License-Identifier: MIT
// The C++ ops. Each lives in one X.cpp, knows pointers, strides and scalars, and throws std::invalid_argument
// (a ValueError in Python) on bad arguments before it writes anything.
#pragma once

#include <array>
#include <cstdint>

namespace ascedfast {

using Dims = std::array<std::int64_t, 4>;  // rows, depth, height, width; an image has depth 1

struct RegionRules {
    int connectivity;         // 4 or 8 (depth 1 only), 6 or 26
    double min_area;          // locations; a region is kept if min_area < size < max_area
    double max_area;          // may be infinite
    std::int64_t core_width;  // locations; a kept region holds a full core_width^2 block inside one frame
};

// Connected regions of every row, and which of them the rules keep.
void label_regions(const std::uint8_t* mask,  // [rows, depth, height, width], nonzero = set
                   const Dims& strides,       // of mask, in elements
                   const Dims& shape,
                   std::int32_t* labels,  // [rows, depth, height, width] contiguous; 0 = background
                   std::uint8_t* kept,    // [rows, depth, height, width] contiguous; 0 or 1
                   const RegionRules& rules);

}  // namespace ascedfast
