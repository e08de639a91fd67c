/*
 * Exchanges of tensors that their receivers ask for, in any engine that has them: grpc+mpi and
 * grpc+verbs. The tensor_*.h are parts of such an engine. It says what an offer, a call, a lane, a peer and the
 * engine itself are, with the members that are used here, and how a tensor travels:
 *   check_size(), make_offer(), ask_for(), respond()
 */
#define MOST_LANES 65536u
#define LOOK_NS INT64_C(50000000)       /* at the stop flag */
#define FINISH_NS INT64_C(5000000000)

enum lane_state { IDLE, OPEN, ARRIVED, HELD, LOOSE, ANSWERING };

typedef struct lane lane;

typedef struct ring {           /* of lanes */
    lane **at;
    uint32_t size, head, count;
} ring;
