// grpc_cq: an extension module of its own, whose engine goes to the loops as a capsule.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "engine.h"

namespace nb = nanobind;
using grpc_cq::Engine;

static nb::object capsule_of(nb::handle self) {
    PyObject *capsule = PyCapsule_New(nb::cast<Engine &>(self).engine(), COMMBENCH_CAPSULE,
                                      [](PyObject *capsule) {
        Py_XDECREF(static_cast<PyObject *>(PyCapsule_GetContext(capsule)));
    });
    if (!capsule) throw nb::python_error();
    self.inc_ref();
    PyCapsule_SetContext(capsule, self.ptr());
    return nb::steal(capsule);
}

NB_MODULE(_grpc_cq, m) {
    nb::class_<Engine>(m, "Engine")
        .def(nb::init<const std::string &, std::vector<std::string>, int>(), nb::arg("address"),
             nb::arg("credentials"), nb::arg("rank"))
        .def_prop_ro("address", &Engine::address)
        .def_prop_ro("capsule", &capsule_of)
        .def("connect", &Engine::connect, nb::arg("addresses"))
        .def("connected", &Engine::connected, nb::arg("timeout_s"),
             nb::call_guard<nb::gil_scoped_release>())
        .def("close", &Engine::close, nb::call_guard<nb::gil_scoped_release>());
}
