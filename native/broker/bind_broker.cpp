// The roles of the benchmark broker for Python; see native/broker/broker.h.
#include "prepared.h"

#include "broker.h"
#include "log_object.h"
#include "protocol.h"
#include "times_object.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace {

using Facts = nb::dict;

using broker::Times;

[[noreturn]] void os_error(int64_t rc, const char *why) {
    Prepared::fail(static_cast<int>(rc), why);
}

// brokers, producers, consumers, partitions, replication
using Shape = std::tuple<uint32_t, uint32_t, uint32_t, uint32_t, uint32_t>;

cb_cluster cluster_of(const Shape &s) {
    cb_cluster who{std::get<0>(s), std::get<1>(s), std::get<2>(s), std::get<3>(s), std::get<4>(s)};
    if (!who.brokers || !who.partitions || !who.replication || who.replication > who.brokers)
        throw nb::value_error("cluster: brokers, partitions and 1 to brokers replicas");
    return who;
}

Prepared &live(nb::handle prepared) {
    auto &p = nb::cast<Prepared &>(prepared);
    if (!p.engine) throw nb::value_error("this case is finished");
    return p;
}

void say(Facts &facts, int rc, int32_t peer, const char *message) {
    facts["error"] = -rc;
    facts["peer"] = peer;
    facts["message"] = message;
}

struct Server {
    cb_serve_run run{};
    std::vector<cb_cut> cuts;
    std::vector<cb_log *> logs;
    nb::object keep;

    Server(nb::object prepared, nb::sequence replicas, const Shape &shape, int32_t rank,
           uint32_t design, uint32_t handlers, uint64_t channel_buffer, int64_t timeout_ns, int64_t fetch_wait_ns)
        : keep(nb::make_tuple(prepared, replicas)) {
        Prepared &p = live(prepared);
        for (nb::handle each : replicas)
            logs.push_back(each.is_none() ? nullptr : nb::cast<broker::Log &>(each).get());
        run.engine = p.engine;
        run.c = &p.c;
        run.who = cluster_of(shape);
        if (logs.size() != run.who.partitions) throw nb::value_error("a log or None for each partition");
        run.rank = rank;
        cuts.resize(p.c.nincoming + p.c.nrequest);
        run.cuts = cuts.data();
        run.logs = logs.data();
        run.design = design;
        run.handlers = handlers;
        run.channel_buffer = channel_buffer;
        run.timeout_ns = timeout_ns;
        run.fetch_wait_ns = fetch_wait_ns;
    }
    Server(const Server &) = delete;

    Facts serve() {
        int rc;
        {
            nb::gil_scoped_release release;
            rc = cb_broker_serve(&run);
        }
        Facts facts;
        say(facts, rc, run.peer, run.message);
        facts["produced"] = run.produced;
        facts["fetched"] = run.fetched;
        facts["refused"] = run.refused;
        facts["records"] = run.records;
        facts["deferred"] = run.deferred;
        facts["copied"] = run.copied;
        facts["allocated"] = run.allocated;
        facts["overtook"] = run.overtook;
        facts["most_waiting"] = run.most_waiting;
        facts["rss_half"] = run.rss_half;
        facts["rss_end"] = run.rss_end;
        return facts;
    }
};

struct Client {
    cb_client client{};
    std::vector<cb_cut> cuts;
    std::vector<uint32_t> correlations;
    std::vector<uint64_t> sent;
    nb::object keep;

    Client(nb::object prepared, const Shape &shape, int32_t rank, int64_t timeout_ns)
        : keep(prepared) {
        Prepared &p = live(prepared);
        client.engine = p.engine;
        client.c = &p.c;
        client.who = cluster_of(shape);
        client.rank = rank;
        client.timeout_ns = timeout_ns;
        if (p.c.nreply < p.c.nrequest) throw nb::value_error("a reply slot for each request slot");
        cuts.resize(p.c.nrequest);
        correlations.resize(client.who.brokers);
        sent.resize(client.who.partitions);
        client.cuts = cuts.data();
        client.correlations = correlations.data();
    }
    Client(const Client &) = delete;

    Facts produce(uint32_t batches, int32_t acks, uint64_t record_nbytes, uint64_t batch_nbytes, int64_t linger_ns,
                  uint32_t max_in_flight, uint64_t count, uint64_t warmup, int64_t duration_ns,
                  int64_t warmup_ns, nb::handle schedule, uint64_t seed, uint32_t flags,
                  Times &latency, Times &delay, Times &response, uint32_t window, Times &windows,
                  nb::handle stamps, uint64_t keep_n) {
        cb_produce_run run{};
        run.client = &client;
        run.batches_at_once = batches;
        run.acks = acks;
        run.record_nbytes = record_nbytes;
        run.batch_nbytes = batch_nbytes;
        run.linger_ns = linger_ns;
        run.max_in_flight = max_in_flight;
        run.count = count;
        run.warmup = warmup;
        run.duration_ns = duration_ns;
        run.warmup_ns = warmup_ns;
        run.schedule = reinterpret_cast<const int64_t *>(nb::cast<uintptr_t>(schedule));
        run.seed = seed;
        run.flags = flags;
        if (keep_n) {
            auto [a, b, c] = nb::cast<std::tuple<uintptr_t, uintptr_t, uintptr_t>>(stamps);
            run.intended = reinterpret_cast<int64_t *>(a);
            run.start = reinterpret_cast<int64_t *>(b);
            run.end = reinterpret_cast<int64_t *>(c);
            run.keep = keep_n;
        }
        run.sent = sent.data();
        run.window = window;
        run.windows = windows.t;
        run.latency = latency.t;
        run.delay = delay.t;
        run.response = response.t;
        int rc;
        {
            nb::gil_scoped_release release;
            rc = cb_produce(&run);
        }
        windows.t = run.windows;
        latency.t = run.latency;
        delay.t = run.delay;
        response.t = run.response;
        Facts facts;
        say(facts, rc, client.peer, client.message);
        facts["records"] = run.records;
        facts["acked"] = run.acked;
        facts["refused"] = run.refused;
        facts["counted"] = run.counted;
        facts["batches"] = run.batches;
        facts["nbytes"] = run.nbytes;
        facts["counted_nbytes"] = run.counted_nbytes;
        facts["copied"] = run.copied;
        facts["reordered"] = run.reordered;
        facts["blocked"] = run.blocked;
        facts["first_ns"] = run.first_ns;
        facts["last_ns"] = run.last_ns;
        return facts;
    }

    // Where the partitions ended when the pass began.
    std::vector<int64_t> offsets(const std::vector<uint32_t> &partitions) {
        std::vector<int64_t> found(partitions.size());
        cb_consume_run run{};
        run.client = &client;
        run.partitions = partitions.data();
        run.npartitions = static_cast<uint32_t>(partitions.size());
        run.offsets = found.data();
        int rc;
        {
            nb::gil_scoped_release release;
            rc = cb_consume_offsets(&run);
        }
        if (rc < 0) os_error(rc, client.message);
        return found;
    }

    Facts consume(const std::vector<uint32_t> &partitions, std::vector<int64_t> from, bool own,
                  uint64_t record_nbytes, uint64_t seed, bool verify, bool stamped,
                  nb::handle end_to_end) {
        cb_consume_run run{};
        run.client = &client;
        run.partitions = partitions.data();
        run.npartitions = static_cast<uint32_t>(partitions.size());
        if (from.size() != partitions.size()) throw nb::value_error("an offset for each partition");
        run.offsets = from.data();
        run.only = own ? client.rank : -1;
        run.expected = sent.data();
        run.record_nbytes = record_nbytes;
        run.seed = seed;
        run.verify = verify;
        run.stamped = stamped;
        Times *times = end_to_end.is_none() ? nullptr : &nb::cast<Times &>(end_to_end);
        if (times) run.end_to_end = times->t;
        int rc;
        {
            nb::gil_scoped_release release;
            rc = cb_consume(&run);
        }
        if (times) times->t = run.end_to_end;
        Facts facts;
        say(facts, rc, client.peer, client.message);
        facts["fetches"] = run.fetches;
        facts["records"] = run.records;
        facts["nbytes"] = run.nbytes;
        facts["validated"] = run.validated;
        facts["first_ns"] = run.first_ns;
        facts["last_ns"] = run.last_ns;
        return facts;
    }

    // Of requests without a body, one after the other.
    Facts round_trips(uint32_t count, Times &times) {
        int rc;
        {
            nb::gil_scoped_release release;
            rc = cb_client_round_trips(&client, count, &times.t);
        }
        Facts facts;
        say(facts, rc, client.peer, client.message);
        return facts;
    }

    Facts end() {
        int rc;
        {
            nb::gil_scoped_release release;
            rc = cb_client_end(&client);
        }
        Facts facts;
        say(facts, rc, client.peer, client.message);
        return facts;
    }
};

}  // namespace

#define FACTS "dict[str, typing.Any]"

void bind_broker(nb::module_ &m) {
    m.attr("BROKER_REQUEST") = BROKER_REQUEST + 0;
    m.attr("BROKER_ANSWER") = BROKER_ANSWER + 0;
    m.attr("BROKER_REASON") = BROKER_REASON + 0;
    m.attr("BATCH_HEADER") = CB_BATCH_HEADER;
    nb::class_<Times>(m, "Times", "Times in ns, counted in the bins of commbench.histogram.")
        .def(nb::init<>())
        .def("add", &Times::add, nb::arg("ns"))
        .def("to_json", &Times::to_json, nb::sig("def to_json(self) -> " FACTS));

    nb::class_<Server>(m, "BrokerServer", "A broker of one pass; keep it until the case is finished.")
        .def(nb::init<nb::object, nb::sequence, const Shape &, int32_t, uint32_t, uint32_t,
                      uint64_t, int64_t, int64_t>(),
             nb::arg("prepared"), nb::arg("logs"), nb::arg("cluster"), nb::arg("rank"),
             nb::arg("design"), nb::arg("handlers"), nb::arg("channel_buffer"), nb::arg("timeout_ns"),
             nb::arg("fetch_wait_ns"),
             nb::sig("def __init__(self, prepared: Prepared, logs: "
                     "collections.abc.Sequence[Log | None], cluster: tuple[int, int, int, int, "
                     "int], rank: int, design: int, handlers: int, channel_buffer: int, "
                     "timeout_ns: int, fetch_wait_ns: int) -> None"))
        .def_prop_ro("phase_address", [](Server &s) {
            return reinterpret_cast<uintptr_t>(&s.run.phase);
        }, "Of an int32: 0 idle, 1 appending, 2 replicating, 3 answering.")
        .def("serve", &Server::serve, nb::sig("def serve(self) -> " FACTS));

    nb::class_<Client>(m, "BrokerClient", "A producer or consumer of one pass; keep it likewise.")
        .def(nb::init<nb::object, const Shape &, int32_t, int64_t>(), nb::arg("prepared"),
             nb::arg("cluster"), nb::arg("rank"), nb::arg("timeout_ns"))
        .def("produce", &Client::produce, nb::kw_only(), nb::arg("batches"), nb::arg("acks"), nb::arg("record_nbytes"),
             nb::arg("batch_nbytes"), nb::arg("linger_ns"), nb::arg("max_in_flight"),
             nb::arg("count"), nb::arg("warmup"), nb::arg("duration_ns"), nb::arg("warmup_ns"),
             nb::arg("schedule"), nb::arg("seed"), nb::arg("flags"), nb::arg("latency"),
             nb::arg("delay"), nb::arg("response"), nb::arg("window"), nb::arg("windows"),
             nb::arg("stamps"), nb::arg("keep"),
             nb::sig("def produce(self, *, batches: int, acks: int, record_nbytes: int, batch_nbytes: int, "
                     "linger_ns: int, max_in_flight: int, count: int, warmup: int, "
                     "duration_ns: int, warmup_ns: int, schedule: int, seed: int, flags: int, "
                     "latency: Times, delay: Times, response: Times, window: int, windows: Times, "
                     "stamps: tuple[int, int, int], keep: int) -> " FACTS))
        .def("offsets", &Client::offsets, nb::arg("partitions"))
        .def("consume", &Client::consume, nb::kw_only(), nb::arg("partitions"), nb::arg("offsets"),
             nb::arg("own"), nb::arg("record_nbytes"), nb::arg("seed"), nb::arg("verify"),
             nb::arg("stamped"), nb::arg("end_to_end").none(),
             nb::sig("def consume(self, *, partitions: collections.abc.Sequence[int], "
                     "offsets: collections.abc.Sequence[int], own: bool, record_nbytes: int, "
                     "seed: int, verify: bool, stamped: bool, "
                     "end_to_end: Times | None) -> " FACTS))
        .def("round_trips", &Client::round_trips, nb::arg("count"), nb::arg("times"),
             nb::sig("def round_trips(self, count: int, times: Times) -> " FACTS))
        .def("end", &Client::end, nb::sig("def end(self) -> " FACTS));
}
