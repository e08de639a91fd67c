// The mpi engine for Python.
#include "bind.h"

#include <dlfcn.h>

#include <memory>
#include <stdexcept>

#include "mpi_library.h"

namespace {

#define CB_MPI_NAME(name, arguments) "MPI_" #name,
const char *const names[] = {CB_MPI_CALLS(CB_MPI_NAME, , )};

// The first of these files, all of them loaded already, that leads to an MPI library.
void *loaded_library(const std::vector<std::string> &files) {
    for (const std::string &file : files) {
        void *handle = dlopen(file.c_str(), RTLD_NOW | RTLD_NOLOAD);
        if (handle && dlsym(handle, names[0])) return handle;
        if (handle) dlclose(handle);
    }
    throw std::runtime_error("none of the loaded files leads to an MPI library");
}

struct MpiEngine {
    cb_engine *engine;
    bool pointer;

    MpiEngine(const std::vector<std::string> &files, bool pointer, uint64_t comm, uint64_t byte,
              uint64_t request_null, uint32_t status_nbytes, int32_t error_at,
              int32_t count_at, int32_t error_in_status, int32_t error_pending, int32_t undefined, const std::string &mode, bool pack)
        : pointer(pointer) {
        cb_mpi_library library{};
        void *handle = loaded_library(files);
        for (int i = 0; i < CB_MPI_NCALLS; i++)
            if (!(library.call[i] = dlsym(handle, names[i])))
                throw std::runtime_error(std::string("this MPI library has no ") + names[i]);
        library.comm = comm;
        library.byte = byte;
        library.request_null = request_null;
        library.status_nbytes = status_nbytes;
        library.error_at = error_at;
        library.count_at = count_at;
        library.error_in_status = error_in_status;
        library.error_pending = error_pending;
        library.undefined = undefined;
        library.mode = mode == "persistent"    ? CB_MPI_PERSISTENT
                       : mode == "nonblocking" ? CB_MPI_NONBLOCKING
                                               : CB_MPI_BLOCKING;
        library.pack = pack;
        engine = pointer ? cb_mpi_pointer_open(&library) : cb_mpi_int_open(&library);
        if (!engine) throw std::bad_alloc();
    }
    MpiEngine(const MpiEngine &) = delete;
    ~MpiEngine() { pointer ? cb_mpi_pointer_close(engine) : cb_mpi_int_close(engine); }
};

}  // namespace

void bind_mpi(nb::module_ &m) {
    nb::class_<MpiEngine>(m, "MpiEngine", "The MPI library that mpi4py loaded, without mpi.h.")
        .def(nb::init<const std::vector<std::string> &, bool, uint64_t, uint64_t, uint64_t,
                      uint32_t, int32_t, int32_t, int32_t, int32_t, int32_t, const std::string &, bool>(),
             nb::arg("files"), nb::kw_only(), nb::arg("pointer"), nb::arg("comm"),
             nb::arg("byte"), nb::arg("request_null"), nb::arg("status_nbytes"),
             nb::arg("error_at"), nb::arg("count_at"),
             nb::arg("error_in_status"), nb::arg("error_pending"), nb::arg("undefined"),
             nb::arg("mode"), nb::arg("pack"))
        .def_prop_ro("capsule", [](nb::handle self) {
            return engine_capsule(nb::cast<MpiEngine &>(self).engine, self);
        }, nb::sig("def capsule(self) -> object"));
}
