// SPDX-License-Identifier: MIT
// The C++ and CUDA ops. Each lives in one X.cpp or X.cu, knows pointers, strides and scalars, and throws std::invalid_argument
// (a ValueError in Python) on bad arguments before it writes anything.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace ascedfast {

using Dims = std::array<std::int64_t, 4>;  // rows, depth, height, width; an image has depth 1

struct RegionRules {
    int connectivity;         // 4 or 8 (depth 1 only), 6 or 26
    double min_area;          // locations; a region is kept if min_area < size < max_area
    double max_area;          // may be infinite
    std::int64_t core_width;  // locations; a kept region holds a full core_width^2 block inside one frame; 0: a seed
};

constexpr std::uint8_t kSeed = 2;  // the bit of a mask's byte that makes a location a seed

// Connected regions of every row, and which of them the rules keep.
void label_regions(const std::uint8_t* mask,  // [rows, depth, height, width], nonzero = set
                   const Dims& strides,       // of mask, in elements
                   const Dims& shape,
                   std::int32_t* labels,  // [rows, depth, height, width] contiguous; 0 = background
                   std::uint8_t* kept,    // [rows, depth, height, width] contiguous; 0 or 1
                   const RegionRules& rules);

// Throws unless the arguments are fine. Addresses may be missing where a size is 0.
void check_label_regions(const Dims& shape, const RegionRules& rules, bool addresses_given);

// Where GPU work goes. The functions below only put kernels there: no wait, no allocation.
struct Queue {
    int device;
    std::uintptr_t stream;  // a cudaStream_t
};

// The same as label_regions on memory of a GPU. The scratch needs no particular content.
void label_regions_cuda(const std::uint8_t* mask,
                        const Dims& strides,
                        const Dims& shape,
                        std::int32_t* labels,
                        std::uint8_t* kept,
                        std::uint8_t* overflow,  // [rows] set to 0: no region is too large or tangled
                        const RegionRules& rules,
                        void* scratch,
                        std::size_t scratch_bytes,
                        const Queue& queue);
std::size_t label_regions_scratch_bytes(const Dims& shape);

// Median and median absolute deviation of each plane, by numpy's rule; both NaN where a value is NaN or Inf.
void medians_cuda(const float* values,  // [planes, count], the counts contiguous
                  std::int64_t stride,  // elements from plane to plane
                  std::int64_t planes,
                  std::int64_t count,
                  float* statistics,  // [planes, 2]: median, median absolute deviation
                  void* scratch,
                  std::size_t scratch_bytes,
                  const Queue& queue);
std::size_t medians_scratch_bytes(std::int64_t planes);

}  // namespace ascedfast
