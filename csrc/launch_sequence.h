// SPDX-License-Identifier: MIT
// Launches that follow one another, put on a stream by one call.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "kernel_launch.h"
#include "ops.h"

namespace ascedfast {

// Where an argument lies: so many bytes after one of the addresses that come with each call.
using Place = std::pair<std::size_t, std::uint64_t>;

// Kernels that Triton compiled and ops of this extension, with everything fixed but the addresses they work on.
class LaunchSequence {
   public:
    explicit LaunchSequence(std::size_t bases) : bases_(bases) {}

    // Each appends one launch. They throw std::invalid_argument for places after an address that no call brings, and
    // for another number of places than the kernel has varying arguments.
    void add_kernel(std::shared_ptr<const KernelLaunch> launch, const std::vector<Place>& arguments);
    void add_medians(const Place& values,  // as medians_cuda
                     std::int64_t stride,
                     std::int64_t planes,
                     std::int64_t count,
                     const Place& statistics,
                     const Place& scratch,
                     std::size_t scratch_bytes);
    void add_label_regions(const Place& mask,  // as label_regions_cuda
                           const Dims& strides,
                           const Dims& shape,
                           const Place& labels,
                           const Place& kept,
                           const Place& overflow,
                           const RegionRules& rules,
                           const Place& scratch,
                           std::size_t scratch_bytes);

    std::size_t bases() const { return bases_; }
    // In the order they were added. Throws what the launches throw; those before have been put on the stream then.
    void operator()(const Queue& queue, const std::uint64_t* addresses) const;

   private:
    void check(const Place& place) const;

    std::size_t bases_;
    std::vector<std::function<void(const Queue&, const std::uint64_t*)>> launches_;
};

}  // namespace ascedfast
