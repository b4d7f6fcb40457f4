// SPDX-License-Identifier: MIT
// The only file that knows pybind11: one m.def and docstring an op, no logic.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "ops.h"
#ifdef ASCEDFAST_CUDA_DRIVER
#include "launch_sequence.h"
#endif

namespace py = pybind11;
using namespace ascedfast;

static void label_regions_binding(std::uintptr_t mask,
                                  const Dims& strides,
                                  const Dims& shape,
                                  std::uintptr_t labels,
                                  std::uintptr_t kept,
                                  int connectivity,
                                  double min_area,
                                  double max_area,
                                  std::int64_t core_width) {
    py::gil_scoped_release unlocked;
    label_regions(reinterpret_cast<const std::uint8_t*>(mask),
                  strides,
                  shape,
                  reinterpret_cast<std::int32_t*>(labels),
                  reinterpret_cast<std::uint8_t*>(kept),
                  RegionRules{connectivity, min_area, max_area, core_width});
}

#ifdef ASCEDFAST_CUDA
static void label_regions_cuda_binding(std::uintptr_t mask,
                                       const Dims& strides,
                                       const Dims& shape,
                                       std::uintptr_t labels,
                                       std::uintptr_t kept,
                                       std::uintptr_t overflow,
                                       int connectivity,
                                       double min_area,
                                       double max_area,
                                       std::int64_t core_width,
                                       std::uintptr_t scratch,
                                       std::size_t scratch_bytes,
                                       int device,
                                       std::uintptr_t stream) {
    py::gil_scoped_release unlocked;
    label_regions_cuda(reinterpret_cast<const std::uint8_t*>(mask),
                       strides,
                       shape,
                       reinterpret_cast<std::int32_t*>(labels),
                       reinterpret_cast<std::uint8_t*>(kept),
                       reinterpret_cast<std::uint8_t*>(overflow),
                       RegionRules{connectivity, min_area, max_area, core_width},
                       reinterpret_cast<void*>(scratch),
                       scratch_bytes,
                       Queue{device, stream});
}

static void medians_cuda_binding(std::uintptr_t values,
                                 std::int64_t stride,
                                 std::int64_t planes,
                                 std::int64_t count,
                                 std::uintptr_t statistics,
                                 std::uintptr_t scratch,
                                 std::size_t scratch_bytes,
                                 int device,
                                 std::uintptr_t stream) {
    py::gil_scoped_release unlocked;
    medians_cuda(reinterpret_cast<const float*>(values),
                 stride,
                 planes,
                 count,
                 reinterpret_cast<float*>(statistics),
                 reinterpret_cast<void*>(scratch),
                 scratch_bytes,
                 Queue{device, stream});
}
#endif

#ifdef ASCEDFAST_CUDA_DRIVER
static constexpr std::size_t kMostBases = 16;

static void read_addresses(const py::args& from, std::uint64_t* into) {
    for (std::size_t i = 0; i < from.size(); ++i) {
        into[i] = PyLong_AsUnsignedLongLong(PyTuple_GET_ITEM(from.ptr(), i));
    }
    if (PyErr_Occurred()) throw py::error_already_set();
}

static std::shared_ptr<LaunchSequence> make_launch_sequence(std::size_t bases) {
    if (bases > kMostBases) throw std::invalid_argument("expected at most 16 addresses");
    return std::make_shared<LaunchSequence>(bases);
}

static void add_label_regions_binding(LaunchSequence& sequence,
                                      const Place& mask,
                                      const Dims& strides,
                                      const Dims& shape,
                                      const Place& labels,
                                      const Place& kept,
                                      const Place& overflow,
                                      int connectivity,
                                      double min_area,
                                      double max_area,
                                      std::int64_t core_width,
                                      const Place& scratch,
                                      std::size_t scratch_bytes) {
    const RegionRules rules{connectivity, min_area, max_area, core_width};
    sequence.add_label_regions(mask, strides, shape, labels, kept, overflow, rules, scratch, scratch_bytes);
}

static void kernel_launch_binding(const KernelLaunch& launch, std::uintptr_t stream, const py::args& varying) {
    if (varying.size() != launch.varying()) throw std::invalid_argument("expected another number of arguments");
    std::uint64_t first[KernelLaunch::kMost];
    read_addresses(varying, first);
    py::gil_scoped_release unlocked;
    launch(stream, first);
}

static void launch_sequence_binding(const LaunchSequence& sequence,
                                    int device,
                                    std::uintptr_t stream,
                                    const py::args& bases) {
    if (bases.size() != sequence.bases()) throw std::invalid_argument("expected another number of addresses");
    std::uint64_t addresses[kMostBases];
    read_addresses(bases, addresses);
    py::gil_scoped_release unlocked;
    sequence(Queue{device, stream}, addresses);
}
#endif

PYBIND11_MODULE(_C, m) {
    m.doc() = "C++ and CUDA ops of ascedfast. They take data pointers as integers, shapes and strides in elements.";

    m.def("label_regions",
          &label_regions_binding,
          py::arg("mask"),
          py::arg("strides"),
          py::arg("shape"),
          py::arg("labels"),
          py::arg("kept"),
          py::arg("connectivity"),
          py::arg("min_area"),
          py::arg("max_area"),
          py::arg("core_width"),
          R"doc(Connected regions of each row of a mask in host memory, and which of them the rules keep.

Args:
    mask: address of bool or uint8 [rows, depth, height, width], nonzero = set. Not modified.
    strides: of mask, in elements; zero and negative strides are fine.
    shape: (rows, depth, height, width); an image has depth 1. Any size 0 returns at once.
    labels: address of contiguous int32 of that shape. Written: 0 = background, else 1, 2, ... in raster order of
        each region's first location, starting again in every row. Dropped regions are numbered too.
    kept: address of contiguous uint8 or bool of that shape. Written: 1 inside the regions that the rules keep.
    connectivity: 6 or 26; where depth is 1 also 4 or 8, their equals there.
    min_area, max_area: locations; kept regions have min_area < size < max_area. max_area may be inf.
    core_width: kept regions hold a full core_width x core_width block inside one frame; 1 = no such rule; 0 = kept
        regions hold a location of value 2 (bit 1 of its byte is set).

Linear in the locations, deterministic, rows independent of each other. Releases the GIL.
Bad arguments raise ValueError before anything is written.)doc");

#ifdef ASCEDFAST_CUDA
    m.attr("has_cuda") = true;

    m.def("label_regions_cuda",
          &label_regions_cuda_binding,
          py::arg("mask"),
          py::arg("strides"),
          py::arg("shape"),
          py::arg("labels"),
          py::arg("kept"),
          py::arg("overflow"),
          py::arg("connectivity"),
          py::arg("min_area"),
          py::arg("max_area"),
          py::arg("core_width"),
          py::arg("scratch"),
          py::arg("scratch_bytes"),
          py::arg("device"),
          py::arg("stream"),
          R"doc(label_regions on memory of a CUDA device, put on a stream: no wait, no allocation, fit for CUDA graphs.

As label_regions, except:
    overflow: address of uint8 or bool [rows]. Written: 0, for callers of implementations that have a bound.
    scratch, scratch_bytes: memory of the device, of at least label_regions_scratch_bytes(shape), aligned to 16 bytes;
        any content. Address 0 will do where that is 0.
    device: ordinal of the device that holds all of it. It is current again only inside the call.
    stream: address of a cudaStream_t of that device; 0 = the default stream.

Rows of at most 2**30 - 1 locations. One launch where a row fits in a block's shared memory (some
100000 locations on an H100, 28000 anywhere), else five. Bad arguments raise ValueError before anything is launched, refused launches RuntimeError.)doc");

    m.def("label_regions_scratch_bytes",
          &label_regions_scratch_bytes,
          py::arg("shape"),
          "Bytes of scratch that label_regions_cuda needs for (rows, depth, height, width), on any device.");

    m.def("medians_cuda",
          &medians_cuda_binding,
          py::arg("values"),
          py::arg("stride"),
          py::arg("planes"),
          py::arg("count"),
          py::arg("statistics"),
          py::arg("scratch"),
          py::arg("scratch_bytes"),
          py::arg("device"),
          py::arg("stream"),
          R"doc(Median of each plane, and median of the absolute deviations from it, exact, on memory of a CUDA device.

Args:
    values: address of float32 [planes, count], contiguous in a plane. Not modified.
    stride: elements from one plane to the next.
    statistics: address of contiguous float32 [planes, 2]. Written: median, median absolute deviation; of an even count
        the mean of the two middle values, (low + high) * 0.5 in float32. Both are NaN where a value of the plane is NaN
        or Inf.
    scratch, scratch_bytes: memory of the device, of at least medians_scratch_bytes(planes), aligned to 16 bytes.
    device, stream: as in label_regions_cuda.

One launch (a cluster of up to 8 thread blocks a plane) on compute capability 9.0 and above up to some 400000 values, else
one clearing of the scratch and one launch. Bad arguments raise ValueError, refused launches RuntimeError.)doc");

    m.def("medians_scratch_bytes",
          &medians_scratch_bytes,
          py::arg("planes"),
          "Bytes of scratch that medians_cuda needs for so many planes, on any device.");
#else
    m.attr("has_cuda") = false;
#endif

#ifdef ASCEDFAST_CUDA_DRIVER
    py::class_<KernelLaunch, std::shared_ptr<KernelLaunch>>(m, "KernelLaunch", R"doc(A loaded kernel with its grid and arguments, launched again and again.

A call takes a stream's address and the first ``varying`` arguments (addresses or ints of 0 or more) and costs what the
driver's own launch costs. The device whose context holds the kernel must be the current one.

Args:
    function: a CUfunction's address. grid: three sizes. threads: of a block. shared_bytes: dynamic shared memory.
    kinds: a letter an argument: p address, i int32, l int64, f float32, - for one the kernel does not take.
    varying: how many come with each call. fixed: the bits of the others.
Raises: ValueError where the kernel's own parameters differ from that (the driver is asked); RuntimeError where the
driver is missing or too old, or refuses a launch.)doc")
        .def(py::init<std::uintptr_t,
                      const std::vector<unsigned>&,
                      unsigned,
                      unsigned,
                      const std::string&,
                      std::size_t,
                      const std::vector<std::uint64_t>&>(),
             py::arg("function"),
             py::arg("grid"),
             py::arg("threads"),
             py::arg("shared_bytes"),
             py::arg("kinds"),
             py::arg("varying"),
             py::arg("fixed"))
        .def("__call__", &kernel_launch_binding, py::arg("stream"));

    py::class_<LaunchSequence, std::shared_ptr<LaunchSequence>>(m, "LaunchSequence", R"doc(Launches that one call puts on a stream, one after the other.

They are appended first, with all they need but addresses. An address is given as a place, (base, offset): so many bytes
after one of the addresses that come with each call. A call takes the device's ordinal, a stream's address and the
``bases`` addresses, at most 16, waits for nothing and allocates nothing. That device must be the current one.

Args:
    bases: how many addresses come with each call.
Raises: ValueError for places after an address that no call brings, and for bad settings; RuntimeError for a launch that
CUDA refuses, when those before it have been launched.)doc")
        .def(py::init(&make_launch_sequence), py::arg("bases"))
        .def("kernel",
             &LaunchSequence::add_kernel,
             py::arg("launch"),
             py::arg("arguments"),
             "Append a KernelLaunch with the places of its varying arguments.")
        .def("medians",
             &LaunchSequence::add_medians,
             py::arg("values"),
             py::arg("stride"),
             py::arg("planes"),
             py::arg("count"),
             py::arg("statistics"),
             py::arg("scratch"),
             py::arg("scratch_bytes"),
             "Append medians_cuda, with places for addresses.")
        .def("label_regions",
             &add_label_regions_binding,
             py::arg("mask"),
             py::arg("strides"),
             py::arg("shape"),
             py::arg("labels"),
             py::arg("kept"),
             py::arg("overflow"),
             py::arg("connectivity"),
             py::arg("min_area"),
             py::arg("max_area"),
             py::arg("core_width"),
             py::arg("scratch"),
             py::arg("scratch_bytes"),
             "Append label_regions_cuda, with places for addresses.")
        .def("__call__", &launch_sequence_binding, py::arg("device"), py::arg("stream"));
#endif
}
