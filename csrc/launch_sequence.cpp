// SPDX-License-Identifier: MIT
#include "launch_sequence.h"

#include <stdexcept>
#include <string>

namespace ascedfast {

namespace {

std::uint64_t address_of(const Place& place, const std::uint64_t* addresses) {
    return addresses[place.first] + place.second;
}

template <class T>
T* pointer_to(const Place& place, const std::uint64_t* addresses) {
    return reinterpret_cast<T*>(static_cast<std::uintptr_t>(address_of(place, addresses)));
}

}  // namespace

void LaunchSequence::check(const Place& place) const {
    if (place.first < bases_) return;
    throw std::invalid_argument("expected places after one of " + std::to_string(bases_) + " addresses, got one after " +
                                std::to_string(place.first));
}

void LaunchSequence::add_kernel(std::shared_ptr<const KernelLaunch> launch, const std::vector<Place>& arguments) {
    if (launch == nullptr) throw std::invalid_argument("expected a kernel's launch");
    if (arguments.size() != launch->varying()) throw std::invalid_argument("expected a place for each varying argument");
    for (const Place& place : arguments) check(place);
    launches_.push_back([launch, arguments](const Queue& queue, const std::uint64_t* addresses) {
        std::uint64_t varying[KernelLaunch::kMost];
        for (std::size_t i = 0; i < arguments.size(); ++i) varying[i] = address_of(arguments[i], addresses);
        (*launch)(queue.stream, varying);
    });
}

void LaunchSequence::add_medians(const Place& values,
                                 std::int64_t stride,
                                 std::int64_t planes,
                                 std::int64_t count,
                                 const Place& statistics,
                                 const Place& scratch,
                                 std::size_t scratch_bytes) {
    for (const Place& place : {values, statistics, scratch}) check(place);
    if (planes < 0 || count < 1) throw std::invalid_argument("expected planes of one value or more");
    launches_.push_back([=](const Queue& queue, const std::uint64_t* addresses) {
        medians_cuda(pointer_to<const float>(values, addresses),
                     stride,
                     planes,
                     count,
                     pointer_to<float>(statistics, addresses),
                     pointer_to<void>(scratch, addresses),
                     scratch_bytes,
                     queue);
    });
}

void LaunchSequence::add_label_regions(const Place& mask,
                                       const Dims& strides,
                                       const Dims& shape,
                                       const Place& labels,
                                       const Place& kept,
                                       const Place& overflow,
                                       const RegionRules& rules,
                                       const Place& scratch,
                                       std::size_t scratch_bytes) {
    for (const Place& place : {mask, labels, kept, overflow, scratch}) check(place);
    check_label_regions(shape, rules, true);
    launches_.push_back([=](const Queue& queue, const std::uint64_t* addresses) {
        label_regions_cuda(pointer_to<const std::uint8_t>(mask, addresses),
                           strides,
                           shape,
                           pointer_to<std::int32_t>(labels, addresses),
                           pointer_to<std::uint8_t>(kept, addresses),
                           pointer_to<std::uint8_t>(overflow, addresses),
                           rules,
                           pointer_to<void>(scratch, addresses),
                           scratch_bytes,
                           queue);
    });
}

void LaunchSequence::operator()(const Queue& queue, const std::uint64_t* addresses) const {
    for (const auto& launch : launches_) launch(queue, addresses);
}

}  // namespace ascedfast
