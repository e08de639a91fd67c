// Messages in memory to what gRPC carries, and back.
#ifndef COMMBENCH_GRPC_CODEC_H
#define COMMBENCH_GRPC_CODEC_H

#include <grpcpp/support/byte_buffer.h>

#include <memory>

#include "commbench_ops.h"

namespace commbench {

class Codec {
  public:
    virtual ~Codec() = default;

    // Raw: one slice for each buffer, gathered by gRPC; a large one refers to the buffer itself.
    // Serialized: a protobuf Payload. An invalid ByteBuffer when protobuf refuses.
    virtual grpc::ByteBuffer encode(const cb_iov &message) = 0;

    // Copies what came into the first bytes of a slot and lets go of it. Bytes copied, -EMSGSIZE
    // when it does not fit, -EBADMSG when it is no Payload.
    virtual int64_t decode(grpc::ByteBuffer *wire, const cb_iov &slot) = 0;

    // Slices of gRPC that still refer to the application's memory.
    virtual long referring() const { return 0; }

    // Payload bytes in all; protobuf writes and reads each once on its way.
    uint64_t copied() const { return copied_; }

  protected:
    uint64_t copied_ = 0;
};

std::unique_ptr<Codec> make_codec(bool serialized);

}  // namespace commbench

#endif
