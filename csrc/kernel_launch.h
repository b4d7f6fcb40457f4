// SPDX-License-Identifier: MIT
// Launches a loaded kernel again and again with other addresses, at a driver call's cost.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace ascedfast {

// One kernel, its grid and its arguments. The first `varying` arguments are given anew at each call.
class KernelLaunch {
   public:
    // kinds: one letter a kernel parameter: p address, i int32, l int64, f float32, and - for an argument that the
    // kernel was compiled for and does not take. fixed: what the arguments after the varying ones hold (bits of a
    // float32 in the lower half). Throws std::invalid_argument where the kernel's own parameters are others, and
    // std::runtime_error where the driver cannot be asked.
    KernelLaunch(std::uintptr_t function,
                 const std::vector<unsigned>& grid,
                 unsigned threads,
                 unsigned shared_bytes,
                 const std::string& kinds,
                 std::size_t varying,
                 const std::vector<std::uint64_t>& fixed);

    KernelLaunch(const KernelLaunch&) = delete;
    KernelLaunch& operator=(const KernelLaunch&) = delete;

    static constexpr std::size_t kMost = 96;  // arguments
    std::size_t varying() const { return varying_; }
    // first: the varying arguments. Throws std::runtime_error where the driver refuses.
    void operator()(std::uintptr_t stream, const std::uint64_t* first) const;

   private:
    std::uintptr_t function_;
    unsigned grid_[3], threads_, shared_bytes_;
    std::size_t varying_;
    std::vector<std::uint64_t> values_;
    std::vector<std::size_t> taken_;  // places in values_ of what the kernel takes, in its order
};

}  // namespace ascedfast
