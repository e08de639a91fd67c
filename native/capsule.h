// How an engine reaches Python: shared by every extension module that has one.
#ifndef COMMBENCH_CAPSULE_H
#define COMMBENCH_CAPSULE_H

#include <nanobind/nanobind.h>

#include "commbench_ops.h"

// The capsule of an engine. `owner` (the Python object that holds it) stays alive with the capsule.
inline nanobind::object engine_capsule(cb_engine *engine, nanobind::handle owner) {
    PyObject *capsule = PyCapsule_New(engine, COMMBENCH_CAPSULE, [](PyObject *self) {
        Py_XDECREF(static_cast<PyObject *>(PyCapsule_GetContext(self)));
    });
    if (!capsule) throw nanobind::python_error();
    if (owner.ptr()) {
        owner.inc_ref();
        PyCapsule_SetContext(capsule, owner.ptr());
    }
    return nanobind::steal(capsule);
}

#endif
