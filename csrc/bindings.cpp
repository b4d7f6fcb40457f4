// SPDX-License-Identifier: MIT
// The only file that knows pybind11: one m.def and docstring an op, no logic.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "ops.h"

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

PYBIND11_MODULE(_C, m) {
    m.doc() = "C++ ops of ascedfast. They take data pointers as integers, and shapes and strides in elements.";

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
    core_width: kept regions hold a full core_width x core_width block inside one frame; 1 = no such rule.

Linear in the locations, deterministic, rows independent of each other. Releases the GIL.
Bad arguments raise ValueError before anything is written.)doc");
}
