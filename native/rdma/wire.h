/*
 * What two ends of the rdma channel say to each other. Whoever speaks it, in any language, speaks to
 * any other: this page is the protocol. All integers are little endian.
 *
 * One RC queue pair joins each pair of ranks. Each end owns a ring of `depth` entries (a power of
 * two) of `stride` bytes, registered for remote writing; its address, rkey, depth and stride travel in
 * the queue pair's address record (commbench/channels/rdma_connect.py).
 *
 * FRAMES. Everything but the payload of a rendezvous travels in frames: `bytes` of payload, then (but
 * see BARE FRAMES) a frame_tail. Frame number s (from 1, for the life of the queue pair; `seq` of its tail) belongs to
 * entry (s - 1) mod depth of the receiver's ring, and gets there in one of three ways, which both
 * ends must have chosen alike (`op` of the record):
 *   send, read   SEND. All entries are posted as receive buffers in their order, so frame s lands in
 *                its own entry, at its start; the completion's length says where the tail is.
 *   write        RDMA WRITE that ends where the entry ends. The receiver watches the last four bytes
 *                of the next entry, which become `seq` when all is there.
 *   write-imm    the same with immediate data (0), which takes one of the `depth` posted (empty)
 *                receive requests and gives a completion.
 *
 * BARE FRAMES. A frame with payload may leave its tail out if it says what follows from the frame
 * before it: kind, nbytes and bytes are the same, `slot` is the next one of the window, `consumed` is one
 * more, or of FRAME_ONE_WAY the same, and `more` is 0. So ping-pongs and windows of messages have hardly
 * a byte more on the wire than the messages. Its receiver must be able to tell:
 *   send, read   it comes with immediate data that is not 0.
 *   write-imm    its immediate data is not 0.
 *   write        a receiver sets the last four bytes of every entry to UNTOUCHED(number of the next
 *                frame there). It has a whole frame once the last byte differs from that; a bare one
 *                unless the four are `seq` then. So a payload may be sent bare if these four bytes
 *                will not be `seq`, and its last one is not that of UNTOUCHED(seq).
 *
 * CREDITS. `consumed` of every frame says how many frames its sender has taken out of its own ring
 * (and posted again). No frame may be sent while sent - consumed >= depth; the last FRAME_RESERVE
 * entries are for FRAME_CREDIT alone, which goes out when half a ring has been consumed and nothing
 * else told the peer. So a receiver is always ready.
 *
 * MESSAGES. A request has a `slot` of its asker's window; while that is in use, what arrived lies in
 * the same slot of the server, and the reply names it again. `nbytes` is the length of the message.
 * Up to eager_max bytes it is the payload of FRAME_REQUEST, FRAME_ONE_WAY or FRAME_REPLY. A larger one
 * is announced by FRAME_RTS_*, and then
 *   by writing   the receiver answers with FRAME_CTS_* whose payload is a list of segments of its
 *                memory, in message order; the sender writes them and then sends FRAME_FIN_*, which
 *                the queue pair keeps behind the data;
 *   by reading   (op=read) FRAME_RTS_* has the segments of the sender's memory as its payload; the
 *                receiver reads them and sends FRAME_FIN_*.
 * A list that does not fit into one frame goes on in the next of the same kind and slot; `more` is
 * not 0 while it does. Messages of one sender are handed to the application in the order of
 * their first frames, whatever way each of them takes.
 *
 * FRAME_SETTLE ends a block of operations: its sender asks nothing more and only serves until all of
 * its peers have sent theirs.
 */
#ifndef COMMBENCH_RDMA_WIRE_H
#define COMMBENCH_RDMA_WIRE_H

#include <stdint.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the rdma channel needs a little-endian machine"
#endif

#define FRAME_RESERVE 3u        /* two CREDITs may be on their way; see above */

enum frame_kind {
    FRAME_REQUEST = 1, FRAME_ONE_WAY = 2, FRAME_REPLY = 3,
    FRAME_RTS_REQUEST = 4, FRAME_RTS_ONE_WAY = 5, FRAME_RTS_REPLY = 6,
    FRAME_CTS_REQUEST = 7, FRAME_CTS_REPLY = 8,     /* of a request, one-way or not; of a reply */
    FRAME_FIN_REQUEST = 9, FRAME_FIN_REPLY = 10,
    FRAME_CREDIT = 11, FRAME_SETTLE = 12
};

typedef struct frame_tail {
    uint64_t nbytes;            /* of the whole message */
    uint32_t slot;
    uint32_t kind;
    uint32_t bytes;             /* of payload, before this tail */
    uint32_t consumed;
    uint32_t more;
    uint32_t seq;               /* last: what op=write watches */
} frame_tail;

#define UNTOUCHED(seq) (~(uint32_t)(seq))
#define LAST_BYTE(word) ((uint32_t)(word) >> 24)

typedef struct segment {
    uint64_t address, nbytes;
    uint32_t rkey, zero;
} segment;

_Static_assert(sizeof(frame_tail) == 32 && sizeof(segment) == 24, "the wire has these sizes");

#endif
