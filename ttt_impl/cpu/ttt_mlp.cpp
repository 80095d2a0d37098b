// TTT-MLP, forward and backward: mathematics and names of `../scan_autograd.py` and `../scan_mlp.py`.
//
// The hidden layer, too, has tokens in its lanes: z1 [4 f, P]. Backward the updates are undone, W1's first, since x2,
// which undoes that of W2, needs it.
#include "gelu.h"
#include "inner_step.h"
#include "problem.h"

struct Shape {
    const int f, f1, h, h1, size, lanes, ld, ld1, ld2;
    explicit Shape(const Problem &p)
        : f(p.width), f1(f + 1), h(4 * f), h1(h + 1), size(p.size), lanes(p.lanes()), ld(2 * lanes), ld1(padded(h)),
          ld2(padded(f)) {}
};

// Apply `each` to corresponding vectors of the rows of tiles.
template <typename Each>
INLINE void entries(int rows, int lanes, Each each) {
    for (int r = 0; r < rows; ++r)
        for (int i = 0; i < lanes; i += LANES) each(r, i);
}

// Working memory of a head's way forward.
struct Ahead : Shape {
    const Problem &p;
    Scratch room;
    float *w1, *w2, *kq, *z, *x2, *y2, *slope, *ghat1, *z2, *ghat2, *target, *rows1, *rows2, *scores, *held, *lr, *rstd;

    explicit Ahead(const Problem &q)
        : Shape(q), p(q), room(f1 * (ld1 + ld) + h1 * ld2 + h * (ld + 2 * lanes) + 2 * h1 * lanes + f * (ld + 2 * lanes) +
                               lanes * (ld1 + ld2 + lanes + 2) + h1 * lanes + 512) {
        w1 = room.take(f1 * ld1), w2 = room.take(h1 * ld2), kq = room.take(f1 * ld), z = room.take(h * ld);
        x2 = room.take(h1 * lanes), y2 = room.take(h1 * lanes), slope = room.take(h * lanes);
        ghat1 = room.take(h * lanes), z2 = room.take(f * ld), ghat2 = room.take(f * lanes);
        target = room.take(f * lanes), rows1 = room.zeros(lanes * ld1), rows2 = room.zeros(lanes * ld2);
        scores = room.take(lanes * lanes), held = room.take(h1 * lanes), lr = room.take(lanes), rstd = room.take(lanes);
    }

    // Ghat1 and Ghat2 of the mini-batch's own tokens.
    void gradients(Affine ln) {
        product(z, ld, {w1, 1, ld1}, kq, ld, h, f1, ld, 1, false);
        entries(h, lanes, [&](int r, int i) {
            const vec z1 = load(z + r * ld + i), s = gelu_sigmoid(z1);
            store(x2 + r * lanes + i, z1 * s);
            store(slope + r * lanes + i, gelu_slope(z1, s));
        });
        product(z2, ld, {w2, 1, ld2}, x2, lanes, f, h1, lanes, 1, false);
        inner_gradient(ghat2, rstd, z2, ld, target, lr, ln, f, lanes);
        product(ghat1, lanes, {w2, ld2, 1}, ghat2, lanes, h, f, lanes, 1, false);
        entries(h, lanes, [&](int r, int i) {
            float *to = ghat1 + r * lanes + i;
            store(to, load(to) * load(slope + r * lanes + i));
        });
    }

    // f(q), in the right half of z2.
    void answers(Affine ln) {
        product(scores, lanes, {kq, 1, ld}, kq + lanes, ld, size, f1, lanes, 1, false);
        causal(scores, p);
        product(z + lanes, ld, {ghat1, lanes, 1}, scores, lanes, h, size, lanes, -1, true);
        entries(h, lanes, [&](int r, int i) {
            const vec z1 = load(z + r * ld + lanes + i);
            store(y2 + r * lanes + i, z1 * gelu_sigmoid(z1));
        });
        product(scores, lanes, {x2, 1, lanes}, y2, lanes, size, h1, lanes, 1, false);
        causal(scores, p);
        product(z2 + lanes, ld, {w2, 1, ld2}, y2, lanes, f, h1, lanes, 1, false);
        product(z2 + lanes, ld, {ghat2, lanes, 1}, scores, lanes, f, size, lanes, -1, true);
        answer(z2 + lanes, kq + lanes, ld, ln, f, lanes);
    }

    // Fold the rows of a full mini-batch into the weights.
    void update() {
        turn_back(rows1, ld1, ghat1, lanes, 0, size, h);
        turn_back(rows2, ld2, ghat2, lanes, 0, size, f);
        product(w1, ld1, {kq, ld, 1}, rows1, ld1, f1, size, ld1, -p.tok[size - 1], true);
        product(w2, ld2, {x2, lanes, 1}, rows2, ld2, h1, size, ld2, -p.tok[size - 1], true);
    }
};

static void forward(const Forward &a, int item) {
    const Problem &p = a.p;
    const Segment &s = p.segment(item);
    Ahead x(p);
    const int f = x.f, h = x.h, lanes = x.lanes, head = p.head(item), count = MiniBatch::count(s, x.size);
    const Affine ln = {p.gamma + head * f, p.beta + head * f};
    const long n = item, size1 = x.f1 * h, size2 = x.h1 * f, slots = n * x.size;
    copy_in(x.w1, a.start[0] + n * size1, x.f1, h);
    copy_in(x.w2, a.start[1] + n * size2, x.h1, f);
    for (int m = 0; m < count; ++m) {
        const MiniBatch b(s, m, x.size);
        if (a.tiles[0] && m > 0 && b.index % EVERY == 0) {
            copy_out(a.checkpoints[0] + checkpoint_of(p, b, head, size1), x.w1, x.f1, h);
            copy_out(a.checkpoints[1] + checkpoint_of(p, b, head, size2), x.w2, x.h1, f);
        }
        read_inputs(x.kq, x.target, x.lr, s, head, b, p);
        read_ones(x.x2 + h * lanes, b, p);
        read_ones(x.y2 + h * lanes, b, p);
        x.gradients(ln);
        if (m == 0 && s.taken > 0) {
            join(x.kq, x.ld, a.rows[0] + slots * x.f1, x.f1, s, x.held, p);
            join(x.ghat1, lanes, a.rows[1] + slots * h, h, s, x.held, p);
            join(x.ghat2, lanes, a.rows[2] + slots * f, f, s, x.held, p);
            join(x.x2, lanes, a.rows[3] + slots * x.h1, x.h1, s, x.held, p);
        }
        x.answers(ln);
        write(a.out, x.z2 + lanes, x.ld, s, head, b, f);
        if (a.tiles[0]) {
            std::memcpy(a.tiles[0] + tile_of(p, b, head, h), x.ghat1, sizeof(float) * h * lanes);
            std::memcpy(a.tiles[1] + tile_of(p, b, head, f), x.ghat2, sizeof(float) * f * lanes);
        }
        if (a.end_rows[0] && m == count - 1 && (!b.full || a.keep_full)) {
            turn_back(a.end_rows[0] + slots * x.f1, x.f1, x.kq, x.ld, 0, x.size, x.f1);
            turn_back(a.end_rows[1] + slots * h, h, x.ghat1, lanes, 0, x.size, h);
            turn_back(a.end_rows[2] + slots * f, f, x.ghat2, lanes, 0, x.size, f);
            turn_back(a.end_rows[3] + slots * x.h1, x.h1, x.x2, lanes, 0, x.size, x.h1);
        }
        if (b.full && a.end[0]) x.update();
    }
    if (a.end[0]) copy_out(a.end[0] + n * size1, x.w1, x.f1, h), copy_out(a.end[1] + n * size2, x.w2, x.h1, f);
}

extern "C" void ttt_mlp_forward(const Forward *a) {
    parallel(a->p.threads, a->p.items(), [&](int item) { forward(*a, item); });
}

// Working memory of a head's way back. Of two tiles side by side in one, the left is the keys', the right the queries'.
struct Back : Shape {
    const Problem &p;
    Scratch room;
    float *w1, *w2, *dw1, *dw2, *kq, *dkq, *z, *xy, *dz, *slope, *curvature, *ghat1, *dghat1, *dback, *back;
    float *z2, *ghat2, *dghat2, *x2_dw2, *target, *dy, *through, *rows1, *rows2, *raw, *scores, *similarity, *rated;
    float *dscores, *dsimilarity, *turned, *da, *lr, *dlr, *rstd, *dtok, *dlast;
    AffineSums sums;

    explicit Back(const Problem &q)
        : Shape(q), p(q), room(2 * (f1 * ld1 + h1 * ld2) + (2 * f1 + 3 * h + h1 + f) * ld + (4 * h + 5 * f + f1) * lanes +
                               (h + f) * LANES + 3 * h * lanes + ld * (ld1 + ld2) + 7 * lanes * lanes + 3 * f * LANES +
                               8 * lanes + 1024) {
        w1 = room.take(f1 * ld1), w2 = room.take(h1 * ld2), dw1 = room.zeros(f1 * ld1), dw2 = room.zeros(h1 * ld2);
        kq = room.take(f1 * ld), dkq = room.take(f1 * ld), z = room.take(h * ld), xy = room.take(h1 * ld);
        dz = room.take(h * ld), slope = room.take(h * ld), curvature = room.take(h * lanes);
        ghat1 = room.take(h * lanes), dghat1 = room.take(h * lanes), dback = room.take(h * lanes);
        back = room.take(h * lanes), z2 = room.take(f * ld), ghat2 = room.take(f * lanes);
        dghat2 = room.take(f * lanes), x2_dw2 = room.take(f * lanes), target = room.take(f * lanes);
        dy = room.take(f * lanes), through = room.take(f1 * lanes), rows1 = room.zeros(ld * ld1);
        rows2 = room.zeros(ld * ld2), raw = room.take(lanes * lanes), scores = room.take(lanes * lanes);
        similarity = room.take(lanes * lanes), rated = room.take(lanes * lanes), dscores = room.take(lanes * lanes);
        dsimilarity = room.take(lanes * lanes), turned = room.take(lanes * lanes), da = room.take(f * LANES);
        lr = room.take(lanes), dlr = room.take(lanes), rstd = room.take(lanes), dtok = room.zeros(lanes);
        dlast = room.zeros(LANES), sums = {room.zeros(f * LANES), room.zeros(f * LANES)};
    }

    // The hidden layer of keys and queries, once W1 is that of the mini-batch's start.
    void hidden() {
        product(z, ld, {w1, 1, ld1}, kq, ld, h, f1, ld, 1, false);
        product(raw, lanes, {kq, 1, ld}, kq + lanes, ld, size, f1, lanes, 1, false);
        std::memcpy(scores, raw, sizeof(float) * size * lanes);
        causal(scores, p);
        product(z + lanes, ld, {ghat1, lanes, 1}, scores, lanes, h, size, lanes, -1, true);
        entries(h, ld, [&](int r, int i) {
            const vec x = load(z + r * ld + i), s = gelu_sigmoid(x);
            store(xy + r * ld + i, x * s);
            store(slope + r * ld + i, gelu_slope(x, s));
            if (i < lanes) store(curvature + r * lanes + i, gelu_curvature(x, s));
        });
    }

    // z2 and z_bar side by side, once W2 is that of the start; back = Ghat2 W2^T.
    void outer() {
        product(z2, ld, {w2, 1, ld2}, xy, ld, f, h1, ld, 1, false);
        product(similarity, lanes, {xy, 1, ld}, xy + lanes, ld, size, h1, lanes, 1, false);
        std::memcpy(rated, similarity, sizeof(float) * size * lanes);
        causal(rated, p);
        product(z2 + lanes, ld, {ghat2, lanes, 1}, rated, lanes, f, size, lanes, -1, true);
        product(back, lanes, {w2, ld2, 1}, ghat2, lanes, h, f, lanes, 1, false);
    }

    // What the queries read, given dz_bar: dz1_bar, and by way of the scores dq, dk and the beginnings of dGhat.
    void queries() {
        const float *dz_bar = z2 + lanes;
        product(dsimilarity, lanes, {ghat2, 1, lanes}, dz_bar, ld, size, f, lanes, -1, false);
        causal_backward(dsimilarity, similarity, dtok, p);
        product(dz + lanes, ld, {w2, ld2, 1}, dz_bar, ld, h, f, lanes, 1, false);
        product(dz + lanes, ld, {xy, ld, 1}, dsimilarity, lanes, h, size, lanes, 1, true);
        entries(h, lanes, [&](int r, int i) {
            float *to = dz + r * ld + lanes + i;
            store(to, load(to) * load(slope + r * ld + lanes + i));
        });
        product(dscores, lanes, {ghat1, 1, lanes}, dz + lanes, ld, size, h, lanes, -1, false);
        causal_backward(dscores, raw, dtok, p);
        product(dkq + lanes, ld, {kq, ld, 1}, dscores, lanes, f, size, lanes, 1, true);
        product(dkq, ld, {kq + lanes, ld, 1}, flipped(dscores), lanes, f, size, lanes, 1, false);
        product(dghat1, lanes, {dz + lanes, ld, 1}, flipped(scores), lanes, h, size, lanes, -1, false);
        product(dghat2, lanes, {dz_bar, ld, 1}, flipped(rated), lanes, f, size, lanes, -1, false);
        product(dz, ld, {xy + lanes, ld, 1}, flipped(dsimilarity), lanes, h, size, lanes, 1, false);
    }

    // By way of the updates to Ghat1, Ghat2, the keys, x2 (in the left half of dz) and the last rate.
    void updates(float last) {
        product(dghat1, lanes, {dw1, 1, ld1}, kq, ld, h, f1, lanes, -last, true);
        product(through, lanes, {dw1, ld1, 1}, ghat1, lanes, f1, h, lanes, 1, false);
        product(x2_dw2, lanes, {dw2, 1, ld2}, xy, ld, f, h1, lanes, 1, false);
        const vec rate = inner_product(kq, ld, through, lanes, f1, lanes);
        store(dlast, load(dlast) - rate - inner_product(ghat2, lanes, x2_dw2, lanes, f, lanes));
        subtract(dkq, ld, through, lanes, f, lanes, last);
        subtract(dghat2, lanes, x2_dw2, lanes, f, lanes, last);
        product(dz, ld, {dw2, ld2, 1}, ghat2, lanes, h, f, lanes, -last, true);
    }

    // dback, and what Ghat1 asks of Ghat2.
    void through_ghat1() {
        entries(h, lanes, [&](int r, int i) {
            store(dback + r * lanes + i, load(dghat1 + r * lanes + i) * load(slope + r * ld + i));
        });
        product(dghat2, lanes, {w2, 1, ld2}, dback, lanes, f, h, lanes, 1, true);
    }

    // From dz2 and dz_bar to z1, to keys and queries, and to the weights.
    void ends() {
        product(dz, ld, {w2, ld2, 1}, z2, ld, h, f, lanes, 1, true);
        entries(h, lanes, [&](int r, int i) {
            const vec second = load(dghat1 + r * lanes + i) * load(back + r * lanes + i) * load(curvature + r * lanes + i);
            store(dz + r * ld + i, load(dz + r * ld + i) * load(slope + r * ld + i) + second);
        });
        product(dkq, ld, {w1, ld1, 1}, dz, ld, f, h, ld, 1, true);
        turn_back(rows1, ld1, dz, ld, 0, ld, h);
        product(dw1, ld1, {kq, ld, 1}, rows1, ld1, f1, ld, ld1, 1, true);
        turn_back(rows2, ld2, z2, ld, 0, ld, f);
        product(dw2, ld2, {xy, ld, 1}, rows2, ld2, h1, ld, ld2, 1, true);
        turn_back(rows2, ld2, ghat2, lanes, 0, lanes, f);
        product(dw2, ld2, {dback, lanes, 1}, rows2, ld2, h, lanes, ld2, 1, true);
    }

    const float *flipped(const float *x) {
        turn(turned, lanes, x, lanes, 0, size, lanes, size);
        return turned;
    }
};

// Weights of the mini-batch's start from those of its end: the update undone, or the checkpoint.
static void undo(float *w, int ldw, Left x, float *rows, const float *ghat, int height, int width, const MiniBatch &b, const Problem &p) {
    if (!b.full) return;
    turn_back(rows, ldw, ghat, p.lanes(), 0, p.size, width);
    product(w, ldw, x, rows, ldw, height, p.size, ldw, p.tok[p.size - 1], true);
}

static void backward(const Backward &a, int item) {
    const Problem &p = a.p;
    const Segment &s = p.segment(item);
    Back x(p);
    const int f = x.f, h = x.h, lanes = x.lanes, ld = x.ld, head = p.head(item);
    const Affine ln = {p.gamma + head * f, p.beta + head * f};
    const long n = item, size1 = x.f1 * h, size2 = x.h1 * f;
    copy_in(x.w1, a.end[0] + n * size1, x.f1, h);
    copy_in(x.w2, a.end[1] + n * size2, x.h1, f);
    for (int m = MiniBatch::count(s, x.size) - 1; m >= 0; --m) {
        const MiniBatch b(s, m, x.size);
        const bool checkpoint = m > 0 && b.index % EVERY == 0;
        read_inputs(x.kq, x.target, x.lr, s, head, b, p);
        for (int half : {0, lanes}) read_ones(x.xy + h * ld + half, b, p);
        std::memcpy(x.ghat1, a.tiles[0] + tile_of(p, b, head, h), sizeof(float) * h * lanes);
        std::memcpy(x.ghat2, a.tiles[1] + tile_of(p, b, head, f), sizeof(float) * f * lanes);
        undo(x.w1, x.ld1, {x.kq, ld, 1}, x.rows1, x.ghat1, x.f1, h, b, p);
        if (checkpoint) copy_in(x.w1, a.checkpoints[0] + checkpoint_of(p, b, head, size1), x.f1, h);
        x.hidden();
        undo(x.w2, x.ld2, {x.xy, ld, 1}, x.rows2, x.ghat2, x.h1, f, b, p);
        if (checkpoint) copy_in(x.w2, a.checkpoints[1] + checkpoint_of(p, b, head, size2), x.h1, f);
        x.outer();
        read(x.dy, lanes, a.dout, s, head, b, p);
        for (int g = 0; g < f; ++g) std::memcpy(x.dkq + g * ld + lanes, x.dy + g * lanes, sizeof(float) * lanes);
        standardise_tile(x.z2, x.rstd, ld, f, lanes);
        answer_backward(x.z2 + lanes, ld, x.dy, ln, x.sums, f, lanes);
        x.queries();
        if (b.full) x.updates(p.tok[x.size - 1]);
        x.through_ghat1();
        inner_gradient_backward(
            x.dghat2, x.z2, ld, x.dlr, x.rstd, x.ghat2, x.target, x.lr, ln, x.sums, x.da, f, lanes);
        subtract(x.dkq, ld, x.dghat2, lanes, f, lanes, 1);
        x.ends();
        write(a.dk, x.dkq, ld, s, head, b, f);
        write(a.dq, x.dkq + lanes, ld, s, head, b, f);
        write(a.dv, x.dghat2, lanes, s, head, b, f);
        write_numbers(a.dlr, x.dlr, s, head, b);
    }
    copy_out(a.dstart[0] + n * size1, x.dw1, x.f1, h);
    copy_out(a.dstart[1] + n * size2, x.dw2, x.h1, f);
    x.dtok[x.size - 1] += sum(load(x.dlast));
    std::memcpy(a.dtok + n * x.size, x.dtok, sizeof(float) * x.size);
    total(a.dgamma + n * f, x.sums.gamma, f);
    total(a.dbeta + n * f, x.sums.beta, f);
}

extern "C" void ttt_mlp_backward(const Backward *a) {
    parallel(a->p.threads, a->p.items(), [&](int item) { backward(*a, item); });
}
