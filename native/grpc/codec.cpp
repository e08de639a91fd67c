#include "codec.h"

#include <grpcpp/support/proto_buffer_reader.h>
#include <grpcpp/impl/codegen/proto_utils.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <vector>

#include "payload.pb.h"

namespace commbench {

namespace {

// Writes to the buffers of a slot in their order.
class Scatter {
  public:
    explicit Scatter(const cb_iov &slot) : slot_(slot), left_(slot.nbytes) {}

    bool put(const void *data, size_t nbytes) {
        if (nbytes > left_) return false;
        left_ -= nbytes;
        for (auto from = static_cast<const char *>(data); nbytes > 0;) {
            while (at_ == slot_.iov[buffer_].iov_len) buffer_++, at_ = 0;
            const iovec &v = slot_.iov[buffer_];
            size_t part = std::min(nbytes, v.iov_len - at_);
            std::memcpy(static_cast<char *>(v.iov_base) + at_, from, part);
            at_ += part;
            from += part;
            nbytes -= part;
        }
        return true;
    }
    int64_t nbytes() const { return static_cast<int64_t>(slot_.nbytes - left_); }

  private:
    const cb_iov &slot_;
    uint64_t left_;
    uint32_t buffer_ = 0;
    size_t at_ = 0;
};

class Raw final : public Codec {
  public:
    grpc::ByteBuffer encode(const cb_iov &message) override {
        for (uint32_t i = 0; i < message.n; i++)
            if (message.iov[i].iov_len > 0) slices_.push_back(slice_of(message.iov[i]));
        grpc::ByteBuffer wire(slices_.data(), slices_.size());
        slices_.clear();
        return wire;
    }

    // The reader looks at slices in place, where ByteBuffer::Dump() would take a reference to each.
    int64_t decode(grpc::ByteBuffer *wire, const cb_iov &slot) override {
        Scatter to(slot);
        {
            grpc::ProtoBufferReader reader(wire);
            const void *data;
            int size;
            while (reader.Next(&data, &size))
                if (!to.put(data, static_cast<size_t>(size))) return -EMSGSIZE;
        }
        wire->Clear();
        copied_ += static_cast<uint64_t>(to.nbytes());
        return to.nbytes();
    }

    long referring() const override { return __atomic_load_n(&referring_, __ATOMIC_ACQUIRE); }

  private:
    static constexpr size_t kCopied = 256;  // bytes: up to here copying costs less than counting

    grpc::Slice slice_of(const iovec &v) {
        if (v.iov_len <= kCopied) {
            copied_ += v.iov_len;
            return grpc::Slice(v.iov_base, v.iov_len);
        }
        __atomic_add_fetch(&referring_, 1, __ATOMIC_RELAXED);
        return grpc::Slice(v.iov_base, v.iov_len, [](void *count) {
            __atomic_sub_fetch(static_cast<long *>(count), 1, __ATOMIC_RELEASE);
        }, &referring_);
    }

    std::vector<grpc::Slice> slices_;  // of one message; kept for its memory
    long referring_ = 0;               // slices that gRPC's threads may let go of, too
};

// As generated stubs do it. The two messages are kept: protobuf then keeps their strings' memory.
class Serialized final : public Codec {
  public:
    grpc::ByteBuffer encode(const cb_iov &message) override {
        grpc::ByteBuffer wire;
        bool own;
        out_.clear_buffers();
        for (uint32_t i = 0; i < message.n; i++)
            out_.add_buffers(message.iov[i].iov_base, message.iov[i].iov_len);
        if (!grpc::SerializationTraits<Payload>::Serialize(out_, &wire, &own).ok()) wire.Clear();
        copied_ += 2 * message.nbytes;
        return wire;
    }

    int64_t decode(grpc::ByteBuffer *wire, const cb_iov &slot) override {
        if (!grpc::SerializationTraits<Payload>::Deserialize(wire, &in_).ok()) return -EBADMSG;
        Scatter to(slot);
        for (const std::string &buffer : in_.buffers())
            if (!to.put(buffer.data(), buffer.size())) return -EMSGSIZE;
        copied_ += 2 * static_cast<uint64_t>(to.nbytes());
        return to.nbytes();
    }

  private:
    Payload out_, in_;
};

}  // namespace

std::unique_ptr<Codec> make_codec(bool serialized) {
    if (serialized) return std::make_unique<Serialized>();
    return std::make_unique<Raw>();
}

}  // namespace commbench
