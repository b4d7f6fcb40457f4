// SPDX-License-Identifier: MIT
#include "kernel_launch.h"

#include <cuda.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <stdexcept>

namespace ascedfast {

namespace {

constexpr std::size_t kHidden = 4;  // parameters that a compiler may add for its own scratch; they are null here

// The driver is found at run time: importing the extension needs none.
template <class Function>
Function driver_function(const char* name, unsigned version) {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult status = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
    cudaGetDriverEntryPointByVersion(name, &found, version, cudaEnableDefault, &status);
#else
    (void)version;
    cudaGetDriverEntryPoint(name, &found, cudaEnableDefault, &status);
#endif
    if (status != cudaDriverEntryPointSuccess || found == nullptr) {
        throw std::runtime_error(std::string("the CUDA driver has no ") + name);
    }
    return reinterpret_cast<Function>(found);
}

using ParameterInfo = CUresult (*)(CUfunction, std::size_t, std::size_t*, std::size_t*);
using Launch = CUresult (*)(CUfunction,
                            unsigned,
                            unsigned,
                            unsigned,
                            unsigned,
                            unsigned,
                            unsigned,
                            unsigned,
                            CUstream,
                            void**,
                            void**);

std::size_t size_of(char kind) { return kind == 'i' || kind == 'f' ? 4 : 8; }

void check_parameters(std::uintptr_t function, const std::string& taken) {
    const auto info = driver_function<ParameterInfo>("cuFuncGetParamInfo", 12040);
    std::size_t offset = 0, size = 0, count = 0;
    while (info(reinterpret_cast<CUfunction>(function), count, &offset, &size) == CUDA_SUCCESS) {
        const std::size_t expected = count < taken.size() ? size_of(taken[count]) : 8;
        if (size != expected) {
            throw std::invalid_argument("parameter " + std::to_string(count) + " of the kernel has " +
                                        std::to_string(size) + " bytes, expected " + std::to_string(expected));
        }
        ++count;
    }
    if (count < taken.size() || count > taken.size() + kHidden) {
        throw std::invalid_argument("the kernel has " + std::to_string(count) + " parameters, expected " +
                                    std::to_string(taken.size()));
    }
}

}  // namespace

KernelLaunch::KernelLaunch(std::uintptr_t function,
                           const std::vector<unsigned>& grid,
                           unsigned threads,
                           unsigned shared_bytes,
                           const std::string& kinds,
                           std::size_t varying,
                           const std::vector<std::uint64_t>& fixed)
    : function_(function), threads_(threads), shared_bytes_(shared_bytes), varying_(varying) {
    if (grid.size() != 3) throw std::invalid_argument("expected a grid of three sizes");
    if (kinds.size() != varying + fixed.size()) throw std::invalid_argument("expected a kind for each argument");
    if (kinds.size() > kMost) throw std::invalid_argument("expected at most 96 arguments");
    if (kinds.find_first_not_of("pilf-") != std::string::npos) throw std::invalid_argument("expected kinds of pilf-");
    for (int i = 0; i < 3; ++i) grid_[i] = grid[i];
    values_.assign(kinds.size() + kHidden, 0);
    for (std::size_t i = 0; i < fixed.size(); ++i) values_[varying + i] = fixed[i];
    std::string taken;
    for (std::size_t i = 0; i < kinds.size(); ++i) {
        if (kinds[i] == '-') continue;
        taken += kinds[i];
        taken_.push_back(i);
    }
    for (std::size_t i = 0; i < kHidden; ++i) taken_.push_back(kinds.size() + i);
    check_parameters(function, taken);
}

void KernelLaunch::operator()(std::uintptr_t stream, const std::uint64_t* first) const {
    // Copies: two threads may launch the same kernel.
    std::uint64_t values[kMost + kHidden];
    void* parameters[kMost + kHidden];
    std::copy(values_.begin(), values_.end(), values);
    std::copy(first, first + varying_, values);
    for (std::size_t i = 0; i < taken_.size(); ++i) parameters[i] = values + taken_[i];  // lower half first: x86, Arm
    static const auto launch = driver_function<Launch>("cuLaunchKernel", 7000);
    const auto go = [&] {
        return launch(reinterpret_cast<CUfunction>(function_),
                      grid_[0],
                      grid_[1],
                      grid_[2],
                      threads_,
                      1,
                      1,
                      shared_bytes_,
                      reinterpret_cast<CUstream>(stream),
                      parameters,
                      nullptr);
    };
    CUresult status = go();
    int device = 0;
    // A thread that has done nothing with CUDA yet has no context: choosing its current device gives it one.
    if (status == CUDA_ERROR_INVALID_CONTEXT && cudaGetDevice(&device) == cudaSuccess &&
        cudaSetDevice(device) == cudaSuccess) {
        status = go();
    }
    if (status != CUDA_SUCCESS) throw std::runtime_error("cuLaunchKernel failed: " + std::to_string(status));
}

}  // namespace ascedfast
