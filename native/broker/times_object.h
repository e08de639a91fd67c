// Times in the bins of commbench.histogram as a Python object: what native loops count into.
#ifndef COMMBENCH_TIMES_OBJECT_H
#define COMMBENCH_TIMES_OBJECT_H

#include <nanobind/nanobind.h>

#include <cstdint>
#include <vector>

#include "broker.h"

namespace broker {

struct Times {
    std::vector<int64_t> counts = std::vector<int64_t>(CB_BINS);
    cb_times t{};
    Times() { t.counts = counts.data(); }
    Times(const Times &) = delete;

    nanobind::dict to_json() const {
        nanobind::list index, count;
        for (int i = 0; i < CB_BINS; i++)
            if (counts[static_cast<size_t>(i)]) {
                index.append(i);
                count.append(counts[static_cast<size_t>(i)]);
            }
        nanobind::dict facts;
        facts["sub_bits"] = 7;
        facts["index"] = index;
        facts["count"] = count;
        facts["n"] = t.n;
        facts["sum"] = t.total;
        facts["min"] = t.n ? nanobind::cast(t.least) : nanobind::none();
        facts["max"] = t.n ? nanobind::cast(t.greatest) : nanobind::none();
        return facts;
    }
    void add(int64_t ns) { cb_times_add(&t, ns); }
};

}  // namespace broker

#endif
