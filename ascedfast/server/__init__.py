# SPDX-License-Identifier: MIT
"""A server of images on Ray Serve, and batches of requests on Ray Data (``docs/serving.md``)."""
