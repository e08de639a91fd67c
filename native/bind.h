// What the bind_*.cpp files share: each engine's Python class lives in a file of its own.
#ifndef COMMBENCH_BIND_H
#define COMMBENCH_BIND_H

#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "engines.h"

namespace nb = nanobind;

void bind_tcp(nb::module_ &m);
void bind_mpi(nb::module_ &m);

// The capsule of an engine. `owner` (the Python object that holds it) stays alive with the capsule.
inline nb::object engine_capsule(cb_engine *engine, nb::handle owner) {
    PyObject *capsule = PyCapsule_New(engine, COMMBENCH_CAPSULE, [](PyObject *self) {
        Py_XDECREF(static_cast<PyObject *>(PyCapsule_GetContext(self)));
    });
    if (!capsule) throw nb::python_error();
    if (owner.ptr()) {
        owner.inc_ref();
        PyCapsule_SetContext(capsule, owner.ptr());
    }
    return nb::steal(capsule);
}

#endif
