/*
 * polling.h: a thread that does nothing but look at an engine, and an engine in front of it.
 *
 * The thread polls without a pause and hands what came to queues, from which the processing thread takes
 * it; answers and requests go the other way, since an engine is called by one thread. So the
 * processing thread never polls, and the engine is looked at while it appends. After Frieda's
 * Continuous Polling. It costs a processor.
 */
#ifndef COMMBENCH_BROKER_POLLING_H
#define COMMBENCH_BROKER_POLLING_H

#include "../commbench_ops.h"

typedef struct cb_polling cb_polling;

/* Begin to poll `engine`, which has been made ready for `c`; NULL: out of memory or threads. */
cb_polling *cb_polling_start(const cb_engine *engine, const cb_case *c);
/* What the processing thread calls: accept, answer, post, poll, progress, last_error. */
const cb_engine *cb_polling_engine(cb_polling *p);
/* Hands over what was answered or posted, and ends the thread. 0 or -errno of that. */
int cb_polling_stop(cb_polling *p, char message[256]);

#endif
