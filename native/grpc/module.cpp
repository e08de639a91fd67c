// commbench._grpc_core: a module of its own, since not every machine has gRPC C++. Its engine goes to
// the loops of commbench._native as a capsule.
#include <google/protobuf/stubs/common.h>
#include <grpcpp/grpcpp.h>
#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/variant.h>
#include <nanobind/stl/vector.h>

#include "../capsule.h"
#include "engine.h"

namespace nb = nanobind;
using namespace nb::literals;
using commbench::Argument;
using commbench::Engine;
using Words = std::vector<std::string>;

NB_MODULE(_grpc_core, m) {
    nb::set_leak_warnings(false);  // a process that ends in a hurry leaves objects behind
    m.doc() = "The engine of the grpc-core channel; see native/grpc/state.h.";
    m.def("grpc_version", &grpc::Version);
    m.def("protobuf_version",
          [] { return google::protobuf::internal::VersionString(GOOGLE_PROTOBUF_VERSION); });

    nb::class_<Engine>(m, "Engine", "One rank's server and connections; RuntimeError when it fails.")
        .def("__init__", [](Engine *self, std::string address, Words credentials, Words hosts,
                            int rank, bool serialized, int channels,
                            std::vector<Argument> arguments) {
            if (rank < 0 || static_cast<size_t>(rank) >= credentials.size() ||
                hosts.size() != credentials.size())
                throw nb::value_error("rank, credentials and hosts do not fit");
            new (self) Engine({std::move(address), std::move(credentials), std::move(hosts), rank,
                               serialized, channels, std::move(arguments)});
        }, "address"_a, "credentials"_a, "hosts"_a, "rank"_a, nb::kw_only(), "serialized"_a,
           "channels"_a, "arguments"_a)
        .def_prop_ro("address", &Engine::address)
        .def_prop_ro("capsule", [](nb::handle self) {
            return engine_capsule(nb::cast<Engine &>(self).engine(), self);
        })
        .def("connect", &Engine::connect, "addresses"_a)
        .def("connected", &Engine::connected, "timeout_s"_a,
             nb::call_guard<nb::gil_scoped_release>())
        .def_prop_ro("came", &Engine::came, nb::rv_policy::copy)
        .def_prop_ro("went", &Engine::went, nb::rv_policy::copy)
        .def("close", &Engine::close, nb::call_guard<nb::gil_scoped_release>());
}
