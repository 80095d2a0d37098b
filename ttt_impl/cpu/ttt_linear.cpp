// TTT-Linear, forward and backward: mathematics and names of `../prepared.py` and `../scan_linear.py`.
//
// A head goes through its mini-batches with W in cache. Backward it goes from the last to the first and undoes each
// update, so that no W is stored but one in EVERY mini-batches, which keeps rounding from adding up.
#include "inner_step.h"
#include "problem.h"

static void forward(const Forward &a, int item) {
    const Problem &p = a.p;
    const Segment &s = p.segment(item);
    const int f = p.width, f1 = f + 1, size = p.size, lanes = p.lanes(), ld = 2 * lanes, ldw = padded(f);
    const int head = p.head(item), count = MiniBatch::count(s, size);
    const Affine ln = {p.gamma + head * f, p.beta + head * f};
    Scratch room(f1 * (ldw + 2 * ld) + (2 * f + f1) * lanes + lanes * (ldw + lanes + 4) + 256);
    float *w = room.take(f1 * ldw), *kq = room.take(f1 * ld), *z = room.take(f1 * ld), *target = room.take(f * lanes);
    float *ghat = room.take(f * lanes), *rows = room.take(lanes * ldw), *scores = room.take(lanes * lanes);
    float *lr = room.take(lanes), *rstd = room.take(lanes);
    float *held = room.take(f1 * lanes);
    copy_in(w, a.start[0] + (long)item * f1 * f, f1, f);
    std::memset(rows, 0, sizeof(float) * lanes * ldw);
    for (int m = 0; m < count; ++m) {
        const MiniBatch b(s, m, size);
        if (a.checkpoints[0] && m > 0 && b.index % EVERY == 0)
            copy_out(a.checkpoints[0] + checkpoint_of(p, b, head, f1 * f), w, f1, f);
        read_inputs(kq, target, lr, s, head, b, p);
        product(z, ld, {w, 1, ldw}, kq, ld, f, f1, ld, 1, false);
        inner_gradient(ghat, rstd, z, ld, target, lr, ln, f, lanes);
        if (m == 0 && s.taken > 0) {
            join(kq, ld, a.rows[0] + (long)item * size * f1, f1, s, held, p);
            join(ghat, lanes, a.rows[1] + (long)item * size * f, f, s, held, p);
        }
        product(scores, lanes, {kq, 1, ld}, kq + lanes, ld, size, f1, lanes, 1, false);
        causal(scores, p);
        product(z + lanes, ld, {ghat, lanes, 1}, scores, lanes, f, size, lanes, -1, true);
        answer(z + lanes, kq + lanes, ld, ln, f, lanes);
        write(a.out, z + lanes, ld, s, head, b, f);
        if (a.tiles[0]) std::memcpy(a.tiles[0] + tile_of(p, b, head, f), ghat, sizeof(float) * f * lanes);
        if (a.end_rows[0] && m == count - 1 && (!b.full || a.keep_full)) {
            turn_back(a.end_rows[0] + (long)item * size * f1, f1, kq, ld, 0, size, f1);
            turn_back(a.end_rows[1] + (long)item * size * f, f, ghat, lanes, 0, size, f);
        }
        if (b.full) {
            turn_back(rows, ldw, ghat, lanes, 0, size, f);
            product(w, ldw, {kq, ld, 1}, rows, ldw, f1, size, ldw, -p.tok[size - 1], true);
        }
    }
    if (a.end[0]) copy_out(a.end[0] + (long)item * f1 * f, w, f1, f);
}

extern "C" void ttt_linear_forward(const Forward *a) {
    parallel(a->p.threads, a->p.items(), [&](int item) { forward(*a, item); });
}

// Working memory of a head's way back, and what it gathers.
struct Way {
    const Problem &p;
    const int f, f1, size, lanes, ld, ldw;
    Scratch room;
    float *w, *dw, *kq, *dkq, *z, *target, *ghat, *dghat, *through, *dy, *rows, *da, *raw, *scores, *dscores, *turned;
    float *lr, *dlr, *rstd, *dtok, *dlast;
    AffineSums sums;

    explicit Way(const Problem &q)
        : p(q), f(q.width), f1(f + 1), size(q.size), lanes(q.lanes()), ld(2 * lanes), ldw(padded(f)),
          room(2 * f1 * ldw + (f1 + 2 * f) * ld + (4 * f + f1) * lanes + ld * ldw + 3 * f * LANES + 4 * lanes * lanes +
               5 * lanes + 512) {
        w = room.take(f1 * ldw), dw = room.zeros(f1 * ldw), kq = room.take(f1 * ld), dkq = room.take(f * ld);
        z = room.take(f * ld), target = room.take(f * lanes), ghat = room.take(f * lanes);
        dghat = room.take(f * lanes), through = room.take(f1 * lanes), dy = room.take(f * lanes);
        rows = room.zeros(ld * ldw), da = room.take(f * LANES), sums = {room.zeros(f * LANES), room.zeros(f * LANES)};
        raw = room.take(lanes * lanes), scores = room.take(lanes * lanes), dscores = room.take(lanes * lanes);
        turned = room.take(lanes * lanes), lr = room.take(lanes), dlr = room.take(lanes), rstd = room.take(lanes);
        dtok = room.zeros(lanes), dlast = room.zeros(LANES);
    }

    // z = k W and z_bar = q W - scores Ghat, side by side; scores^T before and after the causal rates.
    void read_again() {
        product(z, ld, {w, 1, ldw}, kq, ld, f, f1, ld, 1, false);
        product(raw, lanes, {kq, 1, ld}, kq + lanes, ld, size, f1, lanes, 1, false);
        std::memcpy(scores, raw, sizeof(float) * size * lanes);
        causal(scores, p);
        product(z + lanes, ld, {ghat, lanes, 1}, scores, lanes, f, size, lanes, -1, true);
    }

    // From dz_bar to q and k by way of the scores, and to Ghat.
    void queries() {
        const float *dz_bar = z + lanes;
        product(dscores, lanes, {ghat, 1, lanes}, dz_bar, ld, size, f, lanes, -1, false);
        causal_backward(dscores, raw, dtok, p);
        product(dkq + lanes, ld, {kq, ld, 1}, dscores, lanes, f, size, lanes, 1, true);
        turn(turned, lanes, dscores, lanes, 0, size, lanes, size);
        product(dkq, ld, {kq + lanes, ld, 1}, turned, lanes, f, size, lanes, 1, false);
        turn(turned, lanes, scores, lanes, 0, size, lanes, size);
        product(dghat, lanes, {dz_bar, ld, 1}, turned, lanes, f, size, lanes, -1, false);
    }

    // From dW by way of the update -(last k)^T Ghat to Ghat, to k and to the last rate.
    void update(float last) {
        product(dghat, lanes, {dw, 1, ldw}, kq, ld, f, f1, lanes, -last, true);
        product(through, lanes, {dw, ldw, 1}, ghat, lanes, f1, f, lanes, 1, false);
        store(dlast, load(dlast) - inner_product(kq, ld, through, lanes, f1, lanes));
        subtract(dkq, ld, through, lanes, f, lanes, last);
    }
};

static void backward(const Backward &a, int item) {
    const Problem &p = a.p;
    const Segment &s = p.segment(item);
    Way x(p);
    const int f = x.f, f1 = x.f1, lanes = x.lanes, ld = x.ld, head = p.head(item);
    const Affine ln = {p.gamma + head * f, p.beta + head * f};
    copy_in(x.w, a.end[0] + (long)item * f1 * f, f1, f);
    for (int m = MiniBatch::count(s, x.size) - 1; m >= 0; --m) {
        const MiniBatch b(s, m, x.size);
        const float last = p.tok[x.size - 1];
        read_inputs(x.kq, x.target, x.lr, s, head, b, p);
        std::memcpy(x.ghat, a.tiles[0] + tile_of(p, b, head, f), sizeof(float) * f * lanes);
        if (b.full) {
            turn_back(x.rows, x.ldw, x.ghat, lanes, 0, x.size, f);
            product(x.w, x.ldw, {x.kq, ld, 1}, x.rows, x.ldw, f1, x.size, x.ldw, last, true);
        }
        if (m > 0 && b.index % EVERY == 0)
            copy_in(x.w, a.checkpoints[0] + checkpoint_of(p, b, head, f1 * f), f1, f);
        x.read_again();
        read(x.dy, lanes, a.dout, s, head, b, p);
        for (int g = 0; g < f; ++g) std::memcpy(x.dkq + g * ld + lanes, x.dy + g * lanes, sizeof(float) * lanes);
        standardise_tile(x.z, x.rstd, ld, f, lanes);
        answer_backward(x.z + lanes, ld, x.dy, ln, x.sums, f, lanes);
        x.queries();
        if (b.full) x.update(last);
        inner_gradient_backward(
            x.dghat, x.z, ld, x.dlr, x.rstd, x.ghat, x.target, x.lr, ln, x.sums, x.da, f, lanes);
        subtract(x.dkq, ld, x.dghat, lanes, f, lanes, 1);
        product(x.dkq, ld, {x.w, x.ldw, 1}, x.z, ld, f, f, ld, 1, true);
        turn_back(x.rows, x.ldw, x.z, ld, 0, ld, f);
        product(x.dw, x.ldw, {x.kq, ld, 1}, x.rows, x.ldw, f1, ld, x.ldw, 1, true);
        write(a.dk, x.dkq, ld, s, head, b, f);
        write(a.dq, x.dkq + lanes, ld, s, head, b, f);
        write(a.dv, x.dghat, lanes, s, head, b, f);
        write_numbers(a.dlr, x.dlr, s, head, b);
    }
    copy_out(a.dstart[0] + (long)item * f1 * f, x.dw, f1, f);
    x.dtok[x.size - 1] += sum(load(x.dlast));
    std::memcpy(a.dtok + (long)item * x.size, x.dtok, sizeof(float) * x.size);
    total(a.dgamma + (long)item * f, x.sums.gamma, f);
    total(a.dbeta + (long)item * f, x.sums.beta, f);
}

extern "C" void ttt_linear_backward(const Backward *a) {
    parallel(a->p.threads, a->p.items(), [&](int item) { backward(*a, item); });
}
