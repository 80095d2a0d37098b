// The diagonal linear recurrence h_t = a_t h_{t-1} + b_t, each channel for itself, and back in time its gradient
//
//   db_t = dh_t + a_{t+1} db_{t+1}      da_t = db_t h_{t-1}
//
// Two operations a number that is read: memory is the limit. A work item of the threads is all tokens of one row and of
// a few channels, which are stretches long enough to be read at full speed.
#include "_series.h"

namespace {

constexpr int GROUP = 16 * LANES;  // channels in a work item

}  // namespace

struct Recurrence {
    int rows, length, channels, threads;
    Series a, b, state, h;          // a, b, h [R][L][D]; state, before the first token, [R][1][D]
    Series dh, da, db, dstate;      // the gradients: dh is given
};

namespace {

INLINE const float *state_before(const Recurrence &r, int row, int t) {
    return t ? r.h.at(row, t - 1) : r.state.at(row, 0);
}

void forward(const Recurrence &r, int row, int from, int to) {
    for (int t = 0; t < r.length; ++t) {
        const float *a = r.a.at(row, t), *b = r.b.at(row, t), *before = state_before(r, row, t);
        for (int channel = from; channel < to; channel += LANES) {
            const Lanes lanes(channel, r.channels);
            lanes.write(r.h.at(row, t), lanes.read(a) * lanes.read(before) + lanes.read(b));
        }
    }
}

// dstate carries a_{t+1} db_{t+1} from token to token.
void backward(const Recurrence &r, int row, int from, int to) {
    float *carry = r.dstate.at(row, 0);
    std::fill(carry + from, carry + to, 0.0f);
    for (int t = r.length - 1; t >= 0; --t) {
        const float *a = r.a.at(row, t), *dh = r.dh.at(row, t), *before = state_before(r, row, t);
        for (int channel = from; channel < to; channel += LANES) {
            const Lanes lanes(channel, r.channels);
            const vec db = lanes.read(dh) + lanes.read(carry);
            lanes.write(r.db.at(row, t), db);
            lanes.write(r.da.at(row, t), db * lanes.read(before));
            lanes.write(carry, db * lanes.read(a));
        }
    }
}

template <typename Work>
void over_groups(const Recurrence &r, Work work) {
    const int groups = (r.channels + GROUP - 1) / GROUP;
    parallel(r.threads, r.rows * groups, [&](int item) {
        const int from = item % groups * GROUP;
        work(r, item / groups, from, std::min(r.channels, from + GROUP));
    });
}

}  // namespace

extern "C" void recurrence_forward(const Recurrence *r) { over_groups(*r, forward); }

extern "C" void recurrence_backward(const Recurrence *r) { over_groups(*r, backward); }
