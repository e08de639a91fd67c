// The grpc+mpi engine for Python.
#include "bind.h"

#include <dlfcn.h>

#include <stdexcept>

#include "grpc_mpi_library.h"

namespace {

#define CB_NAME(name, arguments) "MPI_" #name,
const char *const names[] = {CB_GRPC_MPI_CALLS(CB_NAME, , )};

// The functions of the first of these files, all of them loaded already, that leads to an MPI library.
void find_calls(const std::vector<std::string> &files, void **call) {
    for (const std::string &file : files) {
        void *handle = dlopen(file.c_str(), RTLD_NOW | RTLD_NOLOAD);
        if (!handle || !dlsym(handle, names[0])) {
            if (handle) dlclose(handle);
            continue;
        }
        for (int i = 0; i < CB_GRPC_MPI_NCALLS; i++)
            if (!(call[i] = dlsym(handle, names[i])))
                throw std::runtime_error(std::string("this MPI library has no ") + names[i]);
        return;
    }
    throw std::runtime_error("none of the loaded files leads to an MPI library");
}

struct GrpcMpiEngine {
    cb_engine *engine = nullptr;
    bool pointer;

    GrpcMpiEngine(const std::vector<std::string> &files, bool pointer, uint64_t comm, uint64_t byte,
                  uint64_t info_null, int32_t any_source, int32_t source_at,
                  uint32_t status_nbytes, int32_t rank, bool optimal, bool sleeps)
        : pointer(pointer) {
        if (status_nbytes > CB_GRPC_MPI_STATUS_MAX || source_at < 0)
            throw std::runtime_error("this MPI library has a Status of an unknown layout");
        cb_grpc_mpi_library library{};
        find_calls(files, library.call);
        library.comm = comm;
        library.byte = byte;
        library.info_null = info_null;
        library.any_source = any_source;
        library.source_at = source_at;
        library.rank = rank;
        library.optimal = optimal;
        library.sleeps = sleeps;
        engine = pointer ? cb_grpc_mpi_pointer_open(&library) : cb_grpc_mpi_int_open(&library);
        if (!engine) throw std::bad_alloc();
    }
    GrpcMpiEngine(const GrpcMpiEngine &) = delete;
    ~GrpcMpiEngine() { pointer ? cb_grpc_mpi_pointer_close(engine) : cb_grpc_mpi_int_close(engine); }

    bool stop() { return pointer ? cb_grpc_mpi_pointer_stop(engine) : cb_grpc_mpi_int_stop(engine); }

    nb::dict counters() const {
        cb_grpc_mpi_counters c;
        pointer ? cb_grpc_mpi_pointer_count(engine, &c) : cb_grpc_mpi_int_count(engine, &c);
        nb::dict counted;
        counted["requests"] = c.requests;
        counted["responses"] = c.responses;
        counted["contents"] = c.contents;
        counted["tensors"] = c.tensors;
        counted["copied_nbytes"] = c.copied_nbytes;
        return counted;
    }
};

}  // namespace

void bind_grpc_mpi(nb::module_ &m) {
    nb::class_<GrpcMpiEngine>(m, "GrpcMpiEngine",
                              "TensorFlow's gRPC+MPI; its thread alone calls MPI during a case.")
        .def(nb::init<const std::vector<std::string> &, bool, uint64_t, uint64_t, uint64_t, int32_t,
                      int32_t, uint32_t, int32_t, bool, bool>(),
             nb::arg("files"), nb::kw_only(), nb::arg("pointer"), nb::arg("comm"), nb::arg("byte"),
             nb::arg("info_null"), nb::arg("any_source"), nb::arg("source_at"),
             nb::arg("status_nbytes"), nb::arg("rank"), nb::arg("optimal"), nb::arg("sleeps"))
        .def_prop_ro("capsule", [](nb::handle self) {
            return engine_capsule(nb::cast<GrpcMpiEngine &>(self).engine, self);
        }, nb::sig("def capsule(self) -> object"))
        .def("stop", &GrpcMpiEngine::stop, nb::call_guard<nb::gil_scoped_release>(),
             "Ends the thread, for good; False: it hangs in MPI, or a case was open.")
        .def("counters", &GrpcMpiEngine::counters, nb::sig("def counters(self) -> dict[str, int]"),
             "Messages sent by tag, tensors that came, bytes of payload copied.");
}
