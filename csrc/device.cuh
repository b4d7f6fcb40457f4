// SPDX-License-Identifier: MIT
// What the kernels ask of CUDA's runtime and of thread block clusters. tests/emulated_device.h has the same names and
// runs the kernels on a CPU, so kernels use nothing beyond this file and the built-in functions that are named there.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>

namespace ascedfast {

inline void expect_success(cudaError_t status, const char* what) {
    if (status == cudaSuccess) return;
    cudaGetLastError();  // else the next, innocent call would report it again
    throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

// Makes a device current for a scope. torch keeps a current device of its own, so the former one comes back.
class DeviceGuard {
   public:
    explicit DeviceGuard(int device) {
        expect_success(cudaGetDevice(&before_), "cudaGetDevice");
        changed_ = before_ != device;
        if (changed_) expect_success(cudaSetDevice(device), "cudaSetDevice");
    }
    ~DeviceGuard() {
        if (changed_) cudaSetDevice(before_);
    }
    DeviceGuard(const DeviceGuard&) = delete;
    DeviceGuard& operator=(const DeviceGuard&) = delete;

   private:
    int before_ = 0;
    bool changed_ = false;
};

inline int device_attribute(cudaDeviceAttr attribute, int device) {
    int value = 0;
    expect_success(cudaDeviceGetAttribute(&value, attribute, device), "cudaDeviceGetAttribute");
    return value;
}

inline std::size_t shared_bytes_a_block(int device) {
    return device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
}
inline int processors(int device) { return device_attribute(cudaDevAttrMultiProcessorCount, device); }
inline bool has_clusters(int device) { return device_attribute(cudaDevAttrComputeCapabilityMajor, device) >= 9; }

inline void clear_memory(void* memory, std::size_t bytes, std::uintptr_t stream) {
    expect_success(cudaMemsetAsync(memory, 0, bytes, reinterpret_cast<cudaStream_t>(stream)), "cudaMemsetAsync");
}

// Asks for a kernel's dynamic shared memory on the current device, and only for more than it was asked before: the
// question takes as long as a launch.
inline void allow_shared(const void* kernel, std::size_t bytes) {
    constexpr std::size_t kWithoutAsking = 48 << 10;
    if (bytes <= kWithoutAsking) return;
    static std::mutex guard;
    static std::map<std::pair<const void*, int>, std::size_t> allowed;
    int device = 0;
    expect_success(cudaGetDevice(&device), "cudaGetDevice");
    const std::lock_guard<std::mutex> locked(guard);
    std::size_t& most = allowed[{kernel, device}];
    if (bytes <= most) return;
    expect_success(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
                   "cudaFuncSetAttribute");
    most = bytes;
}

template <class... Parameters>
void launch(void (*kernel)(Parameters...),
            unsigned blocks,
            unsigned threads,
            std::size_t shared_bytes,
            std::uintptr_t stream,
            Parameters... arguments) {
    allow_shared(reinterpret_cast<const void*>(kernel), shared_bytes);
    kernel<<<blocks, threads, shared_bytes, reinterpret_cast<cudaStream_t>(stream)>>>(arguments...);
    expect_success(cudaGetLastError(), "kernel launch");
}

// The blocks come in clusters of `cluster`; with cluster 0 all of them run at the same time (a cooperative launch).
template <class... Parameters>
void launch_together(void (*kernel)(Parameters...),
                     unsigned blocks,
                     unsigned cluster,
                     unsigned threads,
                     std::size_t shared_bytes,
                     std::uintptr_t stream,
                     Parameters... arguments) {
    allow_shared(reinterpret_cast<const void*>(kernel), shared_bytes);
    cudaLaunchAttribute attribute = {};
    if (cluster > 0) {
        attribute.id = cudaLaunchAttributeClusterDimension;
        attribute.val.clusterDim.x = cluster;
        attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
    } else {
        attribute.id = cudaLaunchAttributeCooperative;
        attribute.val.cooperative = 1;
    }
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(blocks);
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = shared_bytes;
    config.stream = reinterpret_cast<cudaStream_t>(stream);
    config.attrs = &attribute;
    config.numAttrs = 1;
    expect_success(cudaLaunchKernelEx(&config, kernel, arguments...), "kernel launch");
}

// The block's dynamic shared memory, aligned to 16 bytes.
__device__ inline unsigned char* shared_memory() {
    extern __shared__ uint4 dynamic_memory[];
    return reinterpret_cast<unsigned char*>(dynamic_memory);
}

// A wait of one thread for others' memory writes: threads of other blocks count `arrived` up.
__device__ inline void wait_until(volatile const std::uint32_t* arrived, std::uint32_t target) {
    while (*arrived < target) {
    }
}

// Below compute capability 9.0 no kernel that uses these is launched.
__device__ inline std::uint32_t cluster_rank() {
    std::uint32_t rank = 0;
#if __CUDA_ARCH__ >= 900
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
#endif
    return rank;
}

__device__ inline void cluster_sync() {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.release.aligned;\n\tbarrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}

// The words of another block of the cluster that lie where `words` lie in this block's shared memory.
__device__ inline uint4 read_peer(const uint4* words, std::uint32_t rank) {
    uint4 value = {};
#if __CUDA_ARCH__ >= 900
    std::uint32_t address = static_cast<std::uint32_t>(__cvta_generic_to_shared(words));
    asm volatile("mapa.shared::cluster.u32 %0, %0, %1;" : "+r"(address) : "r"(rank));
    asm volatile("ld.shared::cluster.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
                 : "r"(address)
                 : "memory");
#endif
    return value;
}

}  // namespace ascedfast
