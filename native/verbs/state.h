/* What the engine knows. Part of engine.c. */
#define MESSAGE_IMM UINT32_C(0xffffffff)
#define ACK_IMM UINT32_C(0xfffffffe)
#define INDEX_MASK UINT32_C(0x7fffffff)
#define NO_METADATA UINT64_MAX
enum { QUEUE_ENTRIES = 2000, PING_NBYTES = 1024, BATCH = 32, TEXT = 256 };

/* Messages: TensorFlow's of v2, then those that gdr and v1 have; TENSOR_WRITE stands before a tensor. */
enum message_type { META_DATA_UPDATE, TENSOR_RE_REQUEST, TENSOR_REQUEST, ERROR_STATUS,
                    REMOTE_MEMORY_REGION, BUFFER_REQUEST, BUFFER_RESPONSE, BUFFER_IDLE,
                    TENSOR_WRITE, MESSAGE_TYPES };

/* What a work request carried. */
enum cargo { CARGO_MESSAGE, CARGO_ACK, CARGO_PING, CARGO_FREE,
             CARGO_CONTENT, CARGO_READ, CARGO_BUFFER };       /* these are transfers */

typedef struct block {          /* registered memory between the device and several buffers */
    struct block *next;
    char *at;
    uint64_t room;
    struct ibv_mr *mr;
    bool busy;
} block;

/* Content on its way, in as many work requests as the device's longest message makes necessary. */
typedef struct transfer {
    struct transfer *next;      /* of those that wait for the send queue */
    enum cargo cargo;
    uint32_t index;             /* of the lane, or of the tensor buffer */
    char *local;
    uint64_t remote, nbytes;
    uint32_t lkey, rkey, imm;
    uint64_t posted;            /* bytes */
    uint32_t flying;            /* work requests without a completion yet */
} transfer;

/* A tensor in the local table, for whoever asks for it. */
typedef struct offer {
    bool put;
    uint64_t nbytes;
    char *from;                 /* what goes */
    struct ibv_mr *mr;
    block *joined, *clone;
    bool cloned;                /* v2: its metadata were sent; it waits for a TENSOR_RE_REQUEST */
    uint32_t key;               /* gdr: of the region that was told; the peer frees it by that */
} offer;

/* A tensor that is asked of its owner. */
typedef struct call {
    bool arrived;
    cb_iov target;
    uint64_t nbytes;            /* of what came; until then of what the metadata say */
    uint32_t index;             /* request_index */
    char *to;                   /* where it comes to: the target, if that is one buffer, or: */
    block *proxy;
    struct ibv_mr *mr;
    uint32_t key;               /* gdr: of the region that is read */
} call;

/* What the peer said when it asked for the tensor of a lane. */
typedef struct wish {
    uint64_t index, address, nbytes;
    uint32_t rkey;
} wish;

typedef struct tensor_buffer tensor_buffer;

/* A control message that waits for the message buffer. */
typedef struct note {
    struct note *next;
    enum message_type type;
    lane *of;
    tensor_buffer *buffer;      /* v1 */
} note;

/* The k-th exchange with a peer. Its asker offers the request and calls for the reply, its server
 * calls for the request and offers the reply. */
struct lane {
    enum lane_state state;
    bool asks, wants_reply;
    uint32_t peer;              /* index */
    uint64_t number;            /* k: TensorFlow's step */
    offer out;
    call in;
    uint64_t ticket;            /* asker: of post() */
    uint32_t pending;           /* asker: halves that are not complete */
    uint32_t slot;              /* server: of `incoming` */
    uint64_t asked;             /* server: 1 + number of the last reply that was asked for */
    wish wish;
    note out_note, in_note;
    transfer way;               /* v2: of `out`; gdr: of `in` */
    lane *next;                 /* v1: of those that wait for their tensor buffer */
};

/* v1: one end of the memory that the tensors of one name go through. */
struct tensor_buffer {
    char *at;                   /* NULL: none yet */
    uint64_t room;
    struct ibv_mr *mr;
    uint32_t index, peer, flow, place;
    uint64_t address;           /* of the other end */
    uint32_t rkey;
    bool asked;                 /* for the other end, which has not said where it is */
    bool local_busy, remote_busy;       /* until it is written, until BUFFER_IDLE */
    lane *first, *last;
    note note;
    transfer way;
};

enum flow { OUR_REQUEST, OUR_REPLY, THEIR_REQUEST, THEIR_REPLY, FLOWS };

typedef struct peer {
    int32_t rank;
    char keys[FLOWS][TEXT];     /* names of tensors up to their place in a step */
    uint32_t meeting;
    uint64_t *known[2];         /* metadata cache of the replies and requests that we ask for: bytes */
    uint64_t asked, pulled;     /* requests that we posted; of which the peer asked for */
    uint64_t called, arrived;   /* requests that we asked the peer for; that were handed on */
    uint32_t in_flight;
    uint32_t *free_slots, nfree;
    lane *asks, *serves;        /* `lanes` each; number k is in lane k mod lanes */
    tensor_buffer *buffers[FLOWS];      /* v1; by place in a step */
} peer;

/* The queue pair to a rank (TensorFlow's RdmaChannel). */
typedef struct conn {
    int32_t rank;
    struct ibv_qp *qp;          /* NULL: this rank */
    uint32_t psn;
    char *tx, *rx;              /* message buffers; pings at their ends */
    struct ibv_mr *tx_mr, *rx_mr;
    cb_verbs_region theirs;     /* the peer's rx */
    bool local_busy, remote_busy;       /* the message buffer: until it is written, until the ACK */
    bool lost, pinged;
    uint32_t used;              /* entries of the send queue */
    uint32_t kept;              /* of which so many are for what follows a read */
    uint32_t acks;              /* to be sent */
    note *first, *last;
    transfer *content, *content_last;
} conn;

struct engine {
    cb_engine engine;
    cb_verbs_options o;
    cb_verbs_limits limits;
    char name[64];
    struct ibv_context *context;
    struct ibv_pd *pd;
    struct ibv_comp_channel *events;
    struct ibv_cq *cq;
    conn *conns;                /* by rank */
    uint32_t *meetings, nmeetings;      /* cases so far with each rank: the keys' incarnation */
    int32_t rank;

    pthread_t thread;
    bool started;
    int wake, either;           /* an eventfd; an epoll of it and of the completion events */
    pthread_mutex_t lock;       /* of all below */
    pthread_cond_t news;        /* for the thread of the loop */
    pthread_cond_t work;        /* for the completion thread */
    bool running, closing, inside, waiting, handed_over, quit;
    int failed;                 /* -errno, whose line is in thread_error */
    char error[256], thread_error[256], region_error[256];

    const cb_case *c;
    uint32_t lanes, ncut, step; /* step: tensors of a step, which have keys of their own */
    peer *peers;
    int32_t *index_of, nranks;  /* rank -> index in peers, or -1 */
    struct iovec **cut;         /* by slot: its buffers when the message is shorter */
    lane *all;
    uint64_t *known;
    tensor_buffer *buffers;
    ring done, arrived, loose;  /* for poll(), for accept(), to be called for anew */
    regions regions;
    block *blocks;
    uint64_t largest;
    uint32_t flying;            /* work requests of all transfers */
    uint32_t serial;
    uint64_t sent_nbytes;
    cb_verbs_counters counters;
};
typedef struct engine engine;

static void respond(engine *e, lane *a);
static void transfer_done(engine *e, conn *c, transfer *t);
