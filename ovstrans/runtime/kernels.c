/* Convolutions that skip zero weights, for the executor in executor.py. float32, any CPU, no intrinsics.

Compile this file once per native vector width of the CPU: -DWIDTH=64 (AVX-512), 32 (AVX2), 16 (SSE, NEON). The width
must be that of a real register: vectors wider than the CPU's are emulated through memory.

Layout. A feature map is cut into a grid of 16 patches, and the 16 lanes of a vector are the same position in each
patch. So a 1x1 convolution works lane by lane, and every tap of a 3x3 convolution is an aligned load of a neighbouring
vector; only at patch borders do lanes move to the patch beside. Four horizontally adjacent vectors of all channels make
a subtile, float [channels][4][16]; a map is subtiles in the order image, patch row, column group. See layout.py.

A weight that is not zero is a float and a 16-bit offset: how far its input vector is from the start of the block of
channels in the first-level cache. It costs one broadcast and a fused multiply-add per vector of the tile. */

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifndef WIDTH
#define WIDTH 16
#endif

enum {
    LANES = 16,
    SLOTS = 4,                       /* vectors of 16 lanes in a subtile */
    PARTS = 64 / WIDTH,              /* native vectors in 16 lanes */
    CELL = SLOTS * LANES,            /* floats of a channel in a subtile */
    WINDOW_COLUMNS = 6,              /* input vectors of a row of a 3x3 tile: 4 and one on each side */
    WINDOW = 4 * WINDOW_COLUMNS,     /* of two rows: 4 rows of input */
#if WIDTH == 16 && !defined __aarch64__
    STRIP = 8,                       /* accumulators of a row that fit the registers */
#else
    STRIP = SLOTS * PARTS,
#endif
    PASS_ROWS = WIDTH == 64 ? 2 : 1, /* rows of the tile that are accumulated together */
    GROUP_STRIP = WIDTH == 64 || STRIP == 16 ? 4 : 2, /* the same in the kernel of 4x1 blocks */
    AHEAD = 8,                       /* rows of output that are fetched ahead */
    POOLED = 4                       /* channels that are pooled together from lane to lane */
};

typedef float Vec __attribute__((vector_size(WIDTH), may_alias));
typedef int32_t Bits __attribute__((vector_size(WIDTH), may_alias));
typedef float AnyVec __attribute__((vector_size(WIDTH), may_alias, aligned(4)));

#define INLINE static inline __attribute__((always_inline))
#define EXPORT __attribute__((visibility("default")))
#if defined __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

/* ---------------------------------------------------------------- what the executor hands over (see library.py) */

typedef struct {
    int32_t rows, channels;         /* output and input channels */
    int32_t taps;                   /* 1 or 9 */
    int32_t group;                  /* rows that share an offset: 1 or 4 */
    int32_t blocks, block_channels; /* input channels are taken in blocks that stay in the cache */
    const float *bias;              /* [rows] */
    const float *values;            /* [entries][group] */
    const uint16_t *offsets;        /* [entries], in bytes; in units of 64 bytes if group is 4 */
    const uint16_t *runs;           /* [runs][2]: row, number of its entries */
    const int64_t *run_start;       /* [blocks + 1], into runs */
    const int64_t *entry_start;     /* [blocks + 1], into offsets */
} Conv;

typedef struct {
    int32_t images;                            /* B d^2: with dilation d, each residue class is an image */
    int32_t dilation;                          /* d */
    int32_t grid_columns;                      /* of the grid of patches, which are the lanes */
    int32_t patch_rows, patch_columns, groups; /* groups of SLOTS columns */
    const int32_t *row_masks;                  /* [d][patch_rows + 3][16]: lanes inside the image, from row -1 on */
    const int32_t *column_masks;               /* [d][SLOTS groups + 2][16]: the same from column -1 on */
    const uint8_t *row_full, *column_full;     /* whether all 16 lanes are inside */
} Layout;

typedef struct {
    const Layout *from, *to;
    const Conv *spatial;  /* 3x3, on `source` */
    const Conv *shortcut; /* 1x1 on the residual */
    const Conv *expand;   /* 1x1 that is added to the residual */
    const Conv *next;     /* conv1 of the next block, or NULL */
    const float *source;
    const float *residual_in;
    float *residual_out;
    float *next_out;
    const int32_t *index; /* pooling from lane to lane: [4][places of one batch element] */
    float *scratch;
    int64_t scratch_stride, scratch_first; /* floats: of a thread, of the second tile in it */
    int32_t channels;     /* of a map that is pooled or read without a convolution */
    int32_t elements;     /* B */
    int32_t threads;
    int32_t relu;
    /* the image that is read, or the map that is written, in rows of pixels */
    const float *image;
    float *output;
    const int32_t *places; /* [places of one batch element]: offset in a plane; -1 outside */
    int64_t plane, pitch;  /* floats of a plane and of a row */
} Step;

enum Start { CONTINUE, BIAS, ADD };

/* ---------------------------------------------------------------- kernels */

INLINE Vec broadcast(float x) { return x - (Vec){0}; }

INLINE Vec rectify(Vec x) { return (Vec)((Bits)x & ~(x <= (Vec){0})); } /* keeps NaN, as torch does */

INLINE Vec begin(const Vec *y, enum Start start, float bias) {
    if (start == BIAS) return broadcast(bias);
    if (start == ADD) return *y + broadcast(bias);
    return *y;
}

/* Fetch a row of output that is needed soon: the residual, or a line to be written. The CPU's own prefetcher stops at
   each page, which is 16 rows. Past the end of the map nothing is read: a prefetch does not fault. */
INLINE void fetch_ahead(const float *y, const int rows) {
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < CELL; j += LANES) __builtin_prefetch(y + (AHEAD + i) * CELL + j, 1);
}

/* One block of channels, weights one by one.
   x: input vectors; y: output subtile, and another `next_row` floats further if the tile has two rows. */
INLINE void run_elements(const int tile_rows, const Conv *c, int block, const float *x, float *y, int64_t next_row,
                         const enum Start start, const int relu) {
    const float *values = c->values + c->entry_start[block];
    const uint16_t *offsets = c->offsets + c->entry_start[block];
    const uint16_t *run = c->runs + 2 * c->run_start[block], *end = c->runs + 2 * c->run_start[block + 1];
    const int pass_rows = tile_rows < PASS_ROWS ? tile_rows : PASS_ROWS;
    for (; run < end; run += 2) {
        const int count = run[1];
        const float bias = c->bias[run[0]];
        if (tile_rows == 1 && start != CONTINUE) fetch_ahead(y + run[0] * (int64_t)CELL, 1);
        UNROLL for (int top = 0; top < tile_rows; top += pass_rows)
        UNROLL for (int left = 0; left < SLOTS * PARTS; left += STRIP) {
            Vec *out = (Vec *)(y + run[0] * (int64_t)CELL + top * next_row) + left;
            const int64_t below = next_row / (WIDTH / 4);
            const char *in = (const char *)((const Vec *)x + top * WINDOW_COLUMNS * PARTS + left);
            Vec sum[PASS_ROWS * STRIP];
            UNROLL for (int i = 0; i < pass_rows; i++)
            UNROLL for (int j = 0; j < STRIP; j++) sum[i * STRIP + j] = begin(out + i * below + j, start, bias);
            for (int k = 0; k < count; k++) {
                const Vec weight = broadcast(values[k]);
                const Vec *at = (const Vec *)(in + offsets[k]);
                UNROLL for (int i = 0; i < pass_rows; i++)
                UNROLL for (int j = 0; j < STRIP; j++)
                    sum[i * STRIP + j] += weight * at[i * WINDOW_COLUMNS * PARTS + j];
            }
            UNROLL for (int i = 0; i < pass_rows; i++)
            UNROLL for (int j = 0; j < STRIP; j++)
                out[i * below + j] = relu ? rectify(sum[i * STRIP + j]) : sum[i * STRIP + j];
        }
        values += count;
        offsets += count;
    }
}

/* The same for blocks of 4 rows that share their input: one load serves four multiply-adds. Dense layers run here. */
INLINE void run_groups(const int tile_rows, const Conv *c, int block, const float *x, float *y, int64_t next_row,
                       const enum Start start, const int relu) {
    const float *values = c->values + 4 * c->entry_start[block];
    const uint16_t *offsets = c->offsets + c->entry_start[block];
    const uint16_t *run = c->runs + 2 * c->run_start[block], *end = c->runs + 2 * c->run_start[block + 1];
    for (; run < end; run += 2) {
        const int count = run[1];
        const float *bias = c->bias + run[0];
        if (tile_rows == 1 && start != CONTINUE) fetch_ahead(y + run[0] * (int64_t)CELL, 4);
        for (int top = 0; top < tile_rows; top++)
            for (int left = 0; left < SLOTS * PARTS; left += GROUP_STRIP) {
                Vec *out = (Vec *)(y + run[0] * (int64_t)CELL + top * next_row) + left;
                const Vec *in = (const Vec *)x + top * WINDOW_COLUMNS * PARTS + left;
                Vec sum[4][GROUP_STRIP];
                UNROLL for (int i = 0; i < 4; i++)
                UNROLL for (int j = 0; j < GROUP_STRIP; j++)
                    sum[i][j] = begin(out + i * SLOTS * PARTS + j, start, bias[i]);
                for (int k = 0; k < count; k++) {
                    const Vec *at = in + (int64_t)offsets[k] * PARTS;
                    Vec value[GROUP_STRIP];
                    UNROLL for (int j = 0; j < GROUP_STRIP; j++) value[j] = at[j];
                    UNROLL for (int i = 0; i < 4; i++) {
                        const Vec weight = broadcast(values[4 * k + i]);
                        UNROLL for (int j = 0; j < GROUP_STRIP; j++) sum[i][j] += weight * value[j];
                    }
                }
                UNROLL for (int i = 0; i < 4; i++)
                UNROLL for (int j = 0; j < GROUP_STRIP; j++)
                    out[i * SLOTS * PARTS + j] = relu ? rectify(sum[i][j]) : sum[i][j];
            }
        values += 4 * count;
        offsets += count;
    }
}

/* Each combination of constants becomes a function of its own. */
#define CASES(kernel, rows)                                                            \
    switch (2 * start + relu) {                                                        \
    case 2 * CONTINUE: kernel(rows, c, block, x, y, next_row, CONTINUE, 0); break;     \
    case 2 * CONTINUE + 1: kernel(rows, c, block, x, y, next_row, CONTINUE, 1); break; \
    case 2 * BIAS: kernel(rows, c, block, x, y, next_row, BIAS, 0); break;             \
    case 2 * BIAS + 1: kernel(rows, c, block, x, y, next_row, BIAS, 1); break;         \
    case 2 * ADD: kernel(rows, c, block, x, y, next_row, ADD, 0); break;               \
    case 2 * ADD + 1: kernel(rows, c, block, x, y, next_row, ADD, 1); break;           \
    }
#define KERNEL(name, kernel, rows)                                                                                 \
    static __attribute__((noinline)) void name(const Conv *c, int block, const float *x, float *y, int64_t next_row, \
                                               enum Start start, int relu) {                                       \
        CASES(kernel, rows)                                                                                        \
    }

KERNEL(elements_1, run_elements, 1)
KERNEL(elements_2, run_elements, 2)
KERNEL(groups_1, run_groups, 1)
KERNEL(groups_2, run_groups, 2)

static void run_block(const Conv *c, int block, int tile_rows, const float *x, float *y, int64_t next_row,
                      enum Start start, int relu) {
    start = block ? CONTINUE : start;
    relu = relu && block == c->blocks - 1;
    if (c->group == 4)
        (tile_rows == 2 ? groups_2 : groups_1)(c, block, x, y, next_row, start, relu);
    else
        (tile_rows == 2 ? elements_2 : elements_1)(c, block, x, y, next_row, start, relu);
}

/* 1x1: a subtile x[channels] to a subtile y[rows]. */
static void convolve_point(const Conv *c, const float *x, float *y, enum Start start, int relu) {
    for (int block = 0; block < c->blocks; block++)
        run_block(c, block, 1, x + (int64_t)block * c->block_channels * CELL, y, 0, start, relu);
}

/* ---------------------------------------------------------------- windows of 3x3 convolutions */

typedef struct {
    int image, row, group; /* the upper left subtile */
    int rows;              /* 1 or 2 */
} Tile;

static int64_t subtile(const Layout *l, int image, int row, int group) {
    return ((int64_t)image * l->patch_rows + row) * l->groups + group;
}

static int64_t subtiles(const Layout *l) { return subtile(l, l->images, 0, 0); }

static int tiles(const Layout *l) { return l->images * ((l->patch_rows + 1) / 2) * l->groups; }

static Tile find_tile(const Layout *l, int number) {
    const int pairs = (l->patch_rows + 1) / 2, row = number / l->groups % pairs * 2;
    return (Tile){number / l->groups / pairs, row, number % l->groups, l->patch_rows - row < 2 ? 1 : 2};
}

/* Where the vectors of a window are: distances in floats for one channel, and the lanes to keep. */
typedef struct {
    const float *at[WINDOW];
    int32_t mask[WINDOW][LANES] __attribute__((aligned(64)));
    int inner; /* no lane comes from a neighbouring patch, and all are inside the image */
} Window;

static void find_window(const Layout *l, Tile t, const float *map, int channels, Window *w) {
    const int class = t.image % (l->dilation * l->dilation);
    const int row_class = class / l->dilation, column_class = class % l->dilation;
    const int row_count = l->patch_rows + 3, column_count = SLOTS * l->groups + 2;
    w->inner = 1;
    for (int r = 0; r < t.rows + 2; r++) {
        const int row = t.row - 1 + r, above = row < 0, below = row >= l->patch_rows;
        const int source_row = above ? l->patch_rows - 1 : below ? 0 : row;
        const int row_at = row_class * row_count + row + 1;
        w->inner &= !above && !below && l->row_full[row_at];
        for (int c = 0; c < WINDOW_COLUMNS; c++) {
            const int column = t.group * SLOTS - 1 + c, before = column < 0, after = column >= l->patch_columns;
            const int source_column = before ? l->patch_columns - 1 : after ? 0 : column;
            const int column_at = column_class * column_count + column + 1;
            const int shift = (below - above) * l->grid_columns + after - before;
            const int e = r * WINDOW_COLUMNS + c;
            const int64_t number = subtile(l, t.image, source_row, source_column / SLOTS);
            w->at[e] = map + number * channels * CELL + source_column % SLOTS * LANES + shift;
            w->inner &= !before && !after && l->column_full[column_at];
            for (int lane = 0; lane < LANES; lane++)
                w->mask[e][lane] = l->row_masks[row_at * LANES + lane] & l->column_masks[column_at * LANES + lane];
        }
    }
}

INLINE void copy_vectors(float *to, const float *from, const int count) {
    UNROLL for (int i = 0; i < count * PARTS; i++)((Vec *)to)[i] = ((const Vec *)from)[i];
}

/* Gather the windows of channels [first, end), float [channels][WINDOW][16]. */
static void pack_window(const Window *w, int rows, int first, int end, float *out) {
    if (w->inner) {
        for (int i = first; i < end; i++, out += WINDOW * LANES)
            for (int r = 0; r < rows + 2; r++) {
                const float *const *at = w->at + r * WINDOW_COLUMNS;
                float *to = out + r * WINDOW_COLUMNS * LANES;
                copy_vectors(to, at[0] + (int64_t)i * CELL, 1);
                copy_vectors(to + LANES, at[1] + (int64_t)i * CELL, SLOTS);
                copy_vectors(to + (SLOTS + 1) * LANES, at[SLOTS + 1] + (int64_t)i * CELL, 1);
            }
        return;
    }
    for (int e = 0; e < (rows + 2) * WINDOW_COLUMNS; e++) {
        const float *from = w->at[e] + (int64_t)first * CELL;
        float *to = out + e * LANES;
        Bits mask[PARTS];
        UNROLL for (int p = 0; p < PARTS; p++) mask[p] = ((const Bits *)w->mask[e])[p];
        for (int i = first; i < end; i++, from += CELL, to += WINDOW * LANES)
            UNROLL for (int p = 0; p < PARTS; p++)
                ((Vec *)to)[p] = (Vec)((Bits) * (const AnyVec *)(from + p * (WIDTH / 4)) & mask[p]);
    }
}

/* 3x3 with bias and ReLU: a tile of `map` to y[rows], and the second row of the tile `next_row` floats further. */
static void convolve_window(const Conv *c, const Layout *l, Tile t, const float *map, float *scratch, float *y,
                            int64_t next_row) {
    Window w;
    find_window(l, t, map, c->channels, &w);
    for (int block = 0; block < c->blocks; block++) {
        const int first = block * c->block_channels, end = first + c->block_channels;
        pack_window(&w, t.rows, first, end < c->channels ? end : c->channels, scratch);
        run_block(c, block, t.rows, scratch, y, next_row, BIAS, 1);
    }
}

/* ---------------------------------------------------------------- threads */

enum { MOST_THREADS = 64 };
typedef void Work(const Step *s, int tile, float *scratch);

static struct {
    pthread_mutex_t busy, lock; /* one run at a time; the fields below */
    pthread_cond_t started, finished;
    Work *work;
    const Step *step;
    int threads, working, running, tiles; /* started, wanted for this step, not yet done with it */
    long turn;
    atomic_int next;
} pool = {.busy = PTHREAD_MUTEX_INITIALIZER,
          .lock = PTHREAD_MUTEX_INITIALIZER,
          .started = PTHREAD_COND_INITIALIZER,
          .finished = PTHREAD_COND_INITIALIZER};

static void take_tiles(int thread) {
    float *scratch = pool.step->scratch + thread * pool.step->scratch_stride;
    for (int tile; (tile = atomic_fetch_add(&pool.next, 1)) < pool.tiles;) pool.work(pool.step, tile, scratch);
}

static void *serve(void *number) {
    const int thread = (int)(intptr_t)number;
    long seen = 0;
    pthread_mutex_lock(&pool.lock);
    for (;;) {
        while (pool.turn == seen) pthread_cond_wait(&pool.started, &pool.lock);
        seen = pool.turn;
        if (thread >= pool.working) continue;
        pthread_mutex_unlock(&pool.lock);
        take_tiles(thread);
        pthread_mutex_lock(&pool.lock);
        if (!--pool.running) pthread_cond_signal(&pool.finished);
    }
    return NULL;
}

/* A child of fork has no threads but its own. */
static void forget_threads(void) {
    pool.threads = 0;
    pool.turn = 0;
    pthread_mutex_init(&pool.busy, NULL);
    pthread_mutex_init(&pool.lock, NULL);
    pthread_cond_init(&pool.started, NULL);
    pthread_cond_init(&pool.finished, NULL);
}

static int start_threads(int wanted) { /* holds the lock; returns how many serve, this one included */
    static int registered;
    if (!registered) registered = !pthread_atfork(NULL, NULL, forget_threads);
    for (pthread_t id; pool.threads < wanted - 1; pool.threads++) {
        if (pthread_create(&id, NULL, serve, (void *)(intptr_t)(pool.threads + 1))) break;
        pthread_detach(id);
    }
    return pool.threads + 1 < wanted ? pool.threads + 1 : wanted;
}

/* Run the tiles of a step. A second caller at the same time works alone. */
static void run_tiles(const Step *s, int count, Work *work) {
    const int wanted = s->threads < MOST_THREADS ? s->threads : MOST_THREADS;
    if (wanted < 2 || count < 2 || pthread_mutex_trylock(&pool.busy)) {
        for (int tile = 0; tile < count; tile++) work(s, tile, s->scratch);
        return;
    }
    pthread_mutex_lock(&pool.lock);
    pool.working = start_threads(wanted);
    pool.work = work;
    pool.step = s;
    pool.tiles = count;
    pool.running = pool.working - 1;
    atomic_store(&pool.next, 0);
    pool.turn++;
    pthread_cond_broadcast(&pool.started);
    pthread_mutex_unlock(&pool.lock);
    take_tiles(0);
    pthread_mutex_lock(&pool.lock);
    while (pool.running) pthread_cond_wait(&pool.finished, &pool.lock);
    pthread_mutex_unlock(&pool.lock);
    pthread_mutex_unlock(&pool.busy);
}

/* ---------------------------------------------------------------- steps */

static float *at_subtile(const float *map, int64_t number, int channels) {
    return (float *)map + number * channels * CELL;
}

/* The first convolution, 3x3 with stride 2: its 9 taps on each plane are gathered as channels of a 1x1 convolution. */
static void lift_tile(const Step *s, int number, float *scratch) {
    const int64_t each = subtiles(s->to) / s->elements, element = number / each;
    const int32_t *places = s->places + number % each * CELL;
    const float *image = s->image + element * s->channels * s->plane;
    float *out = scratch;
    for (int plane = 0; plane < s->channels; plane++, image += s->plane)
        for (int tap = 0; tap < 9; tap++, out += CELL) {
            const float *from = image + tap / 3 * s->pitch + tap % 3;
            for (int i = 0; i < CELL; i++) out[i] = from[places[i]];
        }
    convolve_point(s->next, scratch, at_subtile(s->next_out, number, s->next->rows), BIAS, 1);
}

/* Average 2x2 of the vectors of two subtiles, one below the other, to two slots of a third. */
INLINE void pool_subtiles(const float *above, const float *below, int channels, float *out) {
    const Vec *top = (const Vec *)above, *bottom = (const Vec *)below, quarter = broadcast(0.25f);
    Vec *to = (Vec *)out;
    for (int c = 0; c < channels; c++, top += SLOTS * PARTS, bottom += SLOTS * PARTS, to += SLOTS * PARTS)
        UNROLL for (int pair = 0; pair < 2; pair++)
        UNROLL for (int p = 0; p < PARTS; p++) {
            const int left = 2 * pair * PARTS + p, right = left + PARTS;
            to[pair * PARTS + p] = ((top[left] + top[right]) + (bottom[left] + bottom[right])) * quarter;
        }
}

/* A 3x3 convolution from map to map; with a second layout, pooled by 2x2, all of which then lies in one lane. */
static void spatial_tile(const Step *s, int number, float *scratch) {
    const Tile t = find_tile(s->from, number);
    const int rows = s->spatial->rows;
    if (s->to) {
        float *full = scratch + s->scratch_first, *below = full + (int64_t)rows * CELL;
        float *y = at_subtile(s->next_out, subtile(s->to, t.image, t.row / 2, t.group / 2), rows);
        convolve_window(s->spatial, s->from, t, s->source, scratch, full, (int64_t)rows * CELL);
        pool_subtiles(full, below, rows, y + t.group % 2 * 2 * LANES);
        return;
    }
    float *y = at_subtile(s->next_out, subtile(s->from, t.image, t.row, t.group), rows);
    convolve_window(s->spatial, s->from, t, s->source, scratch, y, (int64_t)s->from->groups * rows * CELL);
}

/* conv2 and conv3 of a bottleneck that keeps its size, its shortcut, and conv1 of the next one. */
static void bottleneck_tile(const Step *s, int number, float *scratch) {
    const Tile t = find_tile(s->from, number);
    const int64_t below = (int64_t)s->spatial->rows * CELL;
    float *middle = scratch + s->scratch_first;
    convolve_window(s->spatial, s->from, t, s->source, scratch, middle, below);
    for (int i = 0; i < t.rows; i++) {
        const int64_t place = subtile(s->from, t.image, t.row + i, t.group);
        float *y = at_subtile(s->residual_out, place, s->expand->rows);
        if (s->shortcut)
            convolve_point(s->shortcut, at_subtile(s->residual_in, place, s->shortcut->channels), y, BIAS, 0);
        convolve_point(s->expand, middle + i * below, y, ADD, 1);
        if (s->next) convolve_point(s->next, y, at_subtile(s->next_out, place, s->next->rows), BIAS, 1);
    }
}

/* Average four values of a map for every place of another layout, a few channels at a time. Each is first put in one
   piece: in the map, the 256 values that a subtile needs of a channel lie far apart, in the same sets of the cache. */
static void pool_tile(const Step *s, int number, float *scratch) {
    const int blocks = (s->channels + POOLED - 1) / POOLED, first = number % blocks * POOLED;
    const int count = s->channels - first < POOLED ? s->channels - first : POOLED;
    const int64_t element = number / blocks;
    const int64_t sources = subtiles(s->from) / s->elements, places = subtiles(s->to) / s->elements;
    const int64_t next = places * CELL; /* from one of the four to the next */
    for (int64_t place = 0; place < sources; place++) {
        const float *from = at_subtile(s->source, element * sources + place, s->channels) + first * CELL;
        for (int c = 0; c < count; c++) copy_vectors(scratch + (c * sources + place) * CELL, from + c * CELL, SLOTS);
    }
    for (int64_t place = 0; place < places; place++) {
        float *to = at_subtile(s->residual_out, element * places + place, s->channels) + first * CELL;
        const int32_t *at = s->index + place * CELL;
        for (int c = 0; c < count; c++, to += CELL) {
            const float *from = scratch + c * sources * CELL;
            for (int i = 0; i < CELL; i++) {
                const float above = from[at[i]] + from[at[next + i]];
                to[i] = (above + (from[at[2 * next + i]] + from[at[3 * next + i]])) * 0.25f;
            }
        }
    }
}

/* The same, where all four lie in the same lane, for one subtile. */
static void pool_by_lane(const Step *s, int number, const float *map, int channels, float *out) {
    const Layout *from = s->from;
    const int group = number % s->to->groups, row = number / s->to->groups % s->to->patch_rows;
    const int image = number / s->to->groups / s->to->patch_rows;
    for (int half = 0; half < 2; half++) {
        const int source = 2 * group + half < from->groups ? 2 * group + half : from->groups - 1;
        const float *above = at_subtile(map, subtile(from, image, 2 * row, source), channels);
        pool_subtiles(above, above + (int64_t)from->groups * channels * CELL, channels, out + half * 2 * LANES);
    }
}

/* The rest of a bottleneck after conv2 where the layout changes: conv3, shortcut, conv1 of the next. The map of conv2
   is pooled already; the residual is pooled here where that goes lane by lane, else it is pooled already, too. */
static void transition_tile(const Step *s, int number, float *scratch) {
    float *y = at_subtile(s->residual_out, number, s->expand->rows), *pooled = scratch + s->scratch_first;
    if (s->from)
        pool_by_lane(s, number, s->residual_in, s->shortcut->channels, pooled);
    else
        pooled = at_subtile(s->residual_in, number, s->shortcut->channels);
    convolve_point(s->shortcut, pooled, y, BIAS, 0);
    convolve_point(s->expand, at_subtile(s->source, number, s->expand->channels), y, ADD, 1);
    if (s->next) convolve_point(s->next, y, at_subtile(s->next_out, number, s->next->rows), BIAS, 1);
}

/* A 1x1 convolution from map to map: conv1 of the first bottleneck, or a linear layer. */
static void point_tile(const Step *s, int number, float *scratch) {
    (void)scratch;
    convolve_point(s->next, at_subtile(s->residual_in, number, s->next->channels),
                   at_subtile(s->next_out, number, s->next->rows), BIAS, s->relu);
}

/* Transpose the rows of a matrix to columns, in blocks that stay in the first cache. */
INLINE void transpose(const float *from, int64_t pitch, int rows, int columns, float *to, int64_t to_pitch) {
    for (int left = 0; left < columns; left += LANES) {
        const int end = left + LANES < columns ? left + LANES : columns;
        for (int row = 0; row < rows; row++)
            for (int column = left; column < end; column++) to[column * to_pitch + row] = from[row * pitch + column];
    }
}

/* A linear layer on 64 of `elements` rows: from rows of `image` or subtiles, to rows of `output` or subtiles. */
static void rows_tile(const Step *s, int number, float *scratch) {
    const Conv *c = s->next;
    const int64_t first = (int64_t)number * CELL;
    const int count = s->elements - first < CELL ? (int)(s->elements - first) : CELL;
    const float *x = scratch;
    if (s->image) {
        if (count < CELL) memset(scratch, 0, sizeof(float) * c->channels * CELL);
        transpose(s->image + first * c->channels, c->channels, count, c->channels, scratch, CELL);
    } else
        x = at_subtile(s->source, number, c->channels);
    float *y = s->output ? scratch + s->scratch_first : at_subtile(s->next_out, number, c->rows);
    convolve_point(c, x, y, BIAS, 0);
    if (s->output) transpose(y, CELL, c->rows, count, s->output + first * c->rows, c->rows);
}

/* Write a map as planes of pixels. */
static void lower_tile(const Step *s, int number, float *scratch) {
    (void)scratch;
    const int64_t each = subtiles(s->from) / s->elements, element = number / each;
    const int32_t *places = s->places + number % each * CELL;
    const float *from = at_subtile(s->source, number, s->channels);
    float *out = s->output + element * s->channels * s->plane;
    int32_t at[CELL], to[CELL], count = 0;
    for (int lane = 0; lane < LANES; lane++)
        for (int slot = 0; slot < SLOTS; slot++)
            if (places[slot * LANES + lane] >= 0) {
                at[count] = slot * LANES + lane;
                to[count] = places[at[count]];
                count++;
            }
    for (int c = 0; c < s->channels; c++, from += CELL, out += s->plane)
        for (int i = 0; i < count; i++) out[to[i]] = from[at[i]];
}

EXPORT void ovs_lift(const Step *s) { run_tiles(s, (int)subtiles(s->to), lift_tile); }
EXPORT void ovs_spatial(const Step *s) { run_tiles(s, tiles(s->from), spatial_tile); }
EXPORT void ovs_bottleneck(const Step *s) { run_tiles(s, tiles(s->from), bottleneck_tile); }
EXPORT void ovs_transition(const Step *s) { run_tiles(s, (int)subtiles(s->to), transition_tile); }
EXPORT void ovs_pool(const Step *s) { run_tiles(s, s->elements * ((s->channels + POOLED - 1) / POOLED), pool_tile); }
EXPORT void ovs_point(const Step *s) { run_tiles(s, (int)subtiles(s->from), point_tile); }
EXPORT void ovs_rows(const Step *s) { run_tiles(s, (s->elements + CELL - 1) / CELL, rows_tile); }
EXPORT void ovs_lower(const Step *s) { run_tiles(s, (int)subtiles(s->from), lower_tile); }

/* Sizes of the structures, for the executor to compare with its own, and this build's width. */
EXPORT int ovs_sizes(int which) { return which == 0 ? sizeof(Conv) : which == 1 ? sizeof(Layout) : sizeof(Step); }
EXPORT int ovs_width(void) { return WIDTH; }

/* Widest build that this CPU runs. */
EXPORT int ovs_widest(void) {
#if defined __x86_64__
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("fma"))
        return 64;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 32;
#endif
    return 16;
}
