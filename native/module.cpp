// commbench._native: the C loops for Python.
#include "prepared.h"

#include <cstring>
#include <memory>
#include <stdexcept>
#include <utility>

namespace {

// What a block of operations did; error is 0 or an errno.
struct Outcome {
    int error, peer;
    uint64_t done, served, messages, validated, elements;
    std::string message;
};

// What cb_parameters says; the weights stay alive with it.
struct Parameters {
    cb_parameters p{};
    nb::object keep;
    Parameters(int32_t first_worker, uint32_t workers, uint32_t ncalls, bool deferred,
               nb::object weights) : keep(std::move(weights)) {
        const auto &slots = nb::cast<Slots &>(keep);
        if (workers == 0 || ncalls == 0 || (slots.size() != 0 && slots.size() != 2 * ncalls))
            throw nb::value_error("weights: two messages for each call, or none");
        p = {first_worker, workers, ncalls, deferred,
             slots.size() ? slots.messages.data() : nullptr};
    }
};

int64_t *stamps(nb::handle address) {
    return reinterpret_cast<int64_t *>(nb::cast<uintptr_t>(address));
}

// The built-in handlers by name, with the memory that one of them needs.
struct Handler {
    cb_handler handler{};
    cb_reverse_state reversed;
    cb_accumulate accumulated{};
    bool given;
    Handler(nb::handle name_or_none, const cb_parameters *p) : given(!name_or_none.is_none()) {
        if (!given) return;
        std::string name = nb::cast<std::string>(name_or_none);
        if (name == "echo") handler = cb_echo;
        else if (name == "sink") handler = cb_sink;
        else if (name == "reverse") handler = cb_reverse(&reversed);
        else if (name == "accumulate" && p && p->weights) accumulate(p);
        else throw nb::value_error("handler: echo, sink, reverse, accumulate (with weights) or None");
    }
    void accumulate(const cb_parameters *p) {
        handler = cb_accumulator(&accumulated, p);
        if (!handler.ops) throw std::bad_alloc();
    }
    Handler(const Handler &) = delete;
    ~Handler() { cb_accumulator_free(&accumulated); }
};

cb_loop_kind kind_of(const std::string &name) {
    static const std::pair<const char *, cb_loop_kind> kinds[] = {
        {"closed", CB_LOOP_CLOSED}, {"windowed", CB_LOOP_WINDOWED}, {"open", CB_LOOP_OPEN},
        {"serve", CB_LOOP_SERVE}, {"ask-and-serve", CB_LOOP_ASK_AND_SERVE}};
    for (auto [known, kind] : kinds)
        if (name == known) return kind;
    throw nb::value_error("kind: closed, windowed, open, serve or ask-and-serve");
}

Outcome run_loop(const std::string &kind, Prepared &prepared, nb::handle handler,
                 std::vector<int32_t> targets, int32_t rank, uint64_t count, uint32_t batch,
                 uint64_t serve, uint64_t seed, uint64_t number, uint64_t request_nbytes,
                 uint64_t reply_nbytes, bool verify_every, bool verify_last, bool ordered, int64_t timeout_ns,
                 nb::handle intended, nb::handle start, nb::handle end,
                 std::vector<uint64_t> call_nbytes, nb::handle parameters, double stretch) {
    if (!prepared.engine) throw nb::value_error("this case is finished");
    cb_run run{};
    run.abi_version = COMMBENCH_ABI_VERSION;
    run.struct_size = sizeof run;
    run.engine = prepared.engine;
    run.c = &prepared.c;
    if (!parameters.is_none()) run.parameters = &nb::cast<Parameters &>(parameters).p;
    run.ncalls = static_cast<uint32_t>(call_nbytes.size());
    run.call_nbytes = call_nbytes.data();
    run.stretch = stretch;
    Handler served_by(handler, run.parameters);
    run.handler = served_by.given ? &served_by.handler : nullptr;
    run.targets = targets.data();
    run.ntargets = static_cast<uint32_t>(targets.size());
    run.rank = rank;
    run.count = count;
    run.batch = batch;
    run.serve = serve;
    run.seed = seed;
    run.number = number;
    run.request_nbytes = request_nbytes;
    run.reply_nbytes = reply_nbytes;
    if (verify_every) run.flags |= CB_VERIFY_EVERY;
    if (verify_last) run.flags |= CB_VERIFY_LAST;
    if (!ordered) run.flags |= CB_ANY_ORDER;
    run.timeout_ns = timeout_ns;
    run.intended = stamps(intended);
    run.start = stamps(start);
    run.end = stamps(end);
    cb_loop_kind k = kind_of(kind);
    int rc;
    {
        nb::gil_scoped_release release;
        rc = cb_loop(k, &run);
    }
    return {-rc, run.peer, run.done, run.served, run.messages, run.validated,
            served_by.accumulated.elements, run.message};
}

struct Loopback {
    cb_engine *engine;
    Loopback(const std::string &fault, uint64_t fault_at)
        : engine(cb_loopback_open(fault.c_str(), fault_at)) {
        if (!engine) throw std::bad_alloc();
    }
    Loopback(const Loopback &) = delete;
    ~Loopback() { cb_loopback_close(engine); }
};

// What reading the clock twice costs, as every sample contains it: the median of n pairs.
std::vector<int64_t> clock_pairs(size_t n) {
    std::vector<int64_t> pairs(n);
    for (auto &pair : pairs) {
        int64_t before = cb_now_ns();
        pair = cb_now_ns() - before;
    }
    return pairs;
}

}  // namespace

NB_MODULE(_native, m) {
    nb::set_leak_warnings(false);  // a process that ends in a hurry leaves objects behind
    m.doc() = "The C loops and engines of commbench; see native/commbench_ops.h.";
    m.attr("ABI_VERSION") = COMMBENCH_ABI_VERSION;
    m.attr("CAPSULE") = COMMBENCH_CAPSULE;

    nb::class_<StopFlag>(m, "StopFlag", "Ends every wait of this process, native or Python.")
        .def(nb::init<>())
        .def("set", &StopFlag::set)
        .def("clear", &StopFlag::clear)
        .def_prop_ro("is_set", &StopFlag::is_set)
        .def_prop_ro("address", [](StopFlag &f) { return reinterpret_cast<uintptr_t>(&f.value); });

    nb::class_<Slots>(m, "Slots", "Messages as (address, nbytes) pairs; keeps owner alive.")
        .def(nb::init<const std::vector<Addresses> &, nb::object>(), nb::arg("slots"),
             nb::arg("owner"))
        .def("__len__", &Slots::size)
        .def("fill_gradients", [](Slots &s, size_t i, uint64_t seed, int32_t sender,
                                  uint64_t number, uint32_t call) {
            cb_fill_gradients(&s.at(i), seed, sender, number, call);
        }, nb::arg("slot"), nb::arg("seed"), nb::arg("sender"), nb::arg("number"), nb::arg("call"))
        .def("fill", [](Slots &s, size_t i, uint64_t seed, int32_t sender, uint64_t number) {
            cb_fill(&s.at(i), seed, sender, number);
        }, nb::arg("slot"), nb::arg("seed"), nb::arg("sender"), nb::arg("number"))
        .def("differs", [](Slots &s, size_t i, uint64_t seed, int32_t sender, uint64_t number) {
            uint32_t buffer = 0;
            uint64_t offset = 0;
            bool bad = cb_verify(&s.at(i), seed, sender, number, &buffer, &offset) < 0;
            return bad ? nb::make_tuple(buffer, offset) : nb::tuple();
        }, nb::arg("slot"), nb::arg("seed"), nb::arg("sender"), nb::arg("number"),
           nb::sig("def differs(self, slot: int, seed: int, sender: int, number: int) -> "
                   "tuple[int, ...]"),
           "(buffer, offset) of the first byte that differs, or ().");

    nb::class_<Prepared>(m, "Prepared", "An engine made ready for a case; OSError when it fails.")
        .def(nb::init<nb::object, std::vector<int32_t>, uint32_t, uint32_t, bool, bool,
                      nb::object, nb::object, nb::object, uint64_t, nb::object, uint32_t>(),
             nb::arg("capsule"), nb::arg("peers"), nb::arg("window"), nb::arg("reply_every"),
             nb::arg("asks"), nb::arg("serves"), nb::arg("request"), nb::arg("reply"),
             nb::arg("incoming"), nb::arg("answer_nbytes"), nb::arg("stop"),
             nb::arg("ncalls") = 1)
        .def("copied", &Prepared::copied, "Payload bytes that the engine has copied so far.")
        .def("finish", &Prepared::finish);

    nb::class_<Parameters>(m, "Parameters", "What a parameter server holds; see cb_parameters.")
        .def(nb::init<int32_t, uint32_t, uint32_t, bool, nb::object>(), nb::arg("first_worker"),
             nb::arg("workers"), nb::arg("calls"), nb::arg("deferred"), nb::arg("weights"));

    nb::class_<Outcome>(m, "Outcome", "What a block did; error is 0 or an errno.")
        .def_ro("error", &Outcome::error)
        .def_ro("peer", &Outcome::peer)
        .def_ro("done", &Outcome::done)
        .def_ro("served", &Outcome::served)
        .def_ro("messages", &Outcome::messages)
        .def_ro("validated", &Outcome::validated)
        .def_ro("elements", &Outcome::elements)
        .def_ro("message", &Outcome::message);

    m.def("run_loop", &run_loop, nb::arg("kind"), nb::arg("prepared"), nb::kw_only(),
          nb::arg("handler").none(), nb::arg("targets"), nb::arg("rank"), nb::arg("count"),
          nb::arg("batch"), nb::arg("serve"), nb::arg("seed"), nb::arg("number"),
          nb::arg("request_nbytes"), nb::arg("reply_nbytes"), nb::arg("verify_every"),
          nb::arg("verify_last"), nb::arg("ordered"), nb::arg("timeout_ns"), nb::arg("intended"), nb::arg("start"),
          nb::arg("end"), nb::arg("call_nbytes"), nb::arg("parameters").none(), nb::arg("stretch"),
          nb::sig("def run_loop(kind: str, prepared: Prepared, *, handler: str | None, "
                  "targets: collections.abc.Sequence[int], rank: int, count: int, batch: int, "
                  "serve: int, seed: int, number: int, request_nbytes: int, reply_nbytes: int, "
                  "verify_every: bool, verify_last: bool, ordered: bool, timeout_ns: int, intended: int, "
                  "start: int, end: int, call_nbytes: collections.abc.Sequence[int], "
                  "parameters: Parameters | None, stretch: float) -> Outcome"),
          "One block through cb_loop() without the GIL; intended, start and end are addresses of "
          "int64 arrays of count elements.");
    m.def("now_ns", &cb_now_ns, "CLOCK_MONOTONIC in ns: the clock of every stamp.");
    m.def("clock_pairs", &clock_pairs, nb::arg("n"), "n differences of two clock reads, in ns.");

    nb::class_<Loopback>(m, "LoopbackEngine", "One process asks itself; see native/loopback.c.")
        .def(nb::init<const std::string &, uint64_t>(), nb::arg("fault"), nb::arg("fault_at"))
        .def_prop_ro("capsule", [](nb::handle self) {
            return engine_capsule(nb::cast<Loopback &>(self).engine, self);
        });
    bind_tcp(m);
    bind_mpi(m);
    bind_grpc_mpi(m);
    bind_kafka(m);
    bind_log(m);
    bind_broker(m);
}
