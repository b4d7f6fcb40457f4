// SPDX-License-Identifier: MIT
// Sums over a warp and over a block whose size is a multiple of 32. Every thread of the block calls them.
#pragma once

#include "device.cuh"

namespace ascedfast {

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr unsigned kScanWords = 33;  // shared memory of block_scan

__device__ inline std::uint32_t warp_sum(std::uint32_t value) {
    for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(kAllLanes, value, step);
    return value;
}

// The sum over the threads before this one; `total` is the whole block's. `sums` is free again after the next barrier.
__device__ inline std::uint32_t block_scan(std::uint32_t value, std::uint32_t* sums, std::uint32_t& total) {
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    std::uint32_t upto = value;
    for (unsigned step = 1; step < 32; step *= 2) {
        const std::uint32_t before = __shfl_up_sync(kAllLanes, upto, step);
        if (lane >= step) upto += before;
    }
    __syncthreads();  // readers of an earlier scan are done
    if (lane == 31) sums[warp] = upto;
    __syncthreads();
    if (warp == 0) {
        const std::uint32_t own = lane < warps ? sums[lane] : 0;
        std::uint32_t running = own;
        for (unsigned step = 1; step < 32; step *= 2) {
            const std::uint32_t before = __shfl_up_sync(kAllLanes, running, step);
            if (lane >= step) running += before;
        }
        sums[lane] = running - own;
        if (lane == 31) sums[32] = running;
    }
    __syncthreads();
    total = sums[32];
    return sums[warp] + upto - value;
}

}  // namespace ascedfast
