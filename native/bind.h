// What the bind_*.cpp files share: each engine's Python class lives in a file of its own.
#ifndef COMMBENCH_BIND_H
#define COMMBENCH_BIND_H

#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "capsule.h"
#include "engines.h"

namespace nb = nanobind;

void bind_tcp(nb::module_ &m);
void bind_mpi(nb::module_ &m);
void bind_grpc_mpi(nb::module_ &m);
void bind_kafka(nb::module_ &m);
void bind_log(nb::module_ &m);
void bind_broker(nb::module_ &m);

#endif
