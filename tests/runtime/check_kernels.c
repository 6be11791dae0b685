/* Compares the kernels with plain loops, without Python: for other CPUs under an emulator, and for valgrind.

   cc -O2 -std=gnu11 -pthread -Wall -Wextra -DWIDTH=16 -I ovstrans/runtime tests/runtime/check_kernels.c -lm -o check && ./check

   It prints the largest relative error of each case, and exits with 1 if one is above 1e-5. */

#include "kernels.c"

#include <math.h>
#include <stdio.h>

enum { SIDE = 16, PATCH = 4 }; /* a map of 16x16 in a grid of 4x4 patches */

static uint32_t state = 1;
static float draw(void) { /* in [-1, 1) */
    state = state * 1664525u + 1013904223u;
    return (float)(state >> 8) / (1 << 23) - 1;
}

static void *make(size_t bytes) {
    void *memory = aligned_alloc(64, (bytes + 63) / 64 * 64);
    memset(memory, 0, (bytes + 63) / 64 * 64);
    return memory;
}

/* Pack dense weights [rows][channels][taps], in which groups of 4 rows share their zeros if group is 4. */
static Conv pack(const float *dense, const float *bias, int rows, int channels, int taps, int group, int each) {
    const int blocks = (channels + each - 1) / each, runs = blocks * rows / group;
    const int64_t most = (int64_t)rows * channels * taps;
    float *values = make(sizeof(float) * most);
    uint16_t *offsets = make(sizeof(uint16_t) * most), *run = make(sizeof(uint16_t) * 2 * runs);
    int64_t *run_start = make(sizeof(int64_t) * (blocks + 1)), *entry_start = make(sizeof(int64_t) * (blocks + 1));
    int64_t entry = 0, line = 0;
    for (int block = 0; block < blocks; block++) {
        const int first = block * each, end = first + each < channels ? first + each : channels;
        run_start[block] = line, entry_start[block] = entry;
        for (int row = 0; row < rows; row += group, line++) {
            const int64_t before = entry;
            for (int c = first; c < end; c++)
                for (int tap = 0; tap < taps; tap++) {
                    const float *at = dense + ((int64_t)row * channels + c) * taps + tap;
                    if (*at == 0) continue;
                    const int vector = taps == 1 ? (c - first) * SLOTS
                                                 : (c - first) * WINDOW + tap / 3 * WINDOW_COLUMNS + tap % 3;
                    for (int i = 0; i < group; i++) values[entry * group + i] = at[(int64_t)i * channels * taps];
                    offsets[entry++] = (uint16_t)(group == 4 ? vector : vector * LANES * 4);
                }
            run[2 * line] = (uint16_t)row, run[2 * line + 1] = (uint16_t)(entry - before);
        }
    }
    run_start[blocks] = line, entry_start[blocks] = entry;
    return (Conv){rows, channels, taps, group, blocks, each, bias, values, offsets, run, run_start, entry_start};
}

static void drop(const Conv *c) {
    free((void *)c->values), free((void *)c->offsets), free((void *)c->runs);
    free((void *)c->run_start), free((void *)c->entry_start);
}

static float *draw_weights(int rows, int channels, int taps, int group) {
    const int inner = channels * taps;
    float *dense = make(sizeof(float) * rows * inner);
    for (int row = 0; row < rows; row += group)
        for (int i = 0; i < inner; i++)
            if (draw() > 0.6f)
                for (int r = 0; r < group; r++) dense[(row + r) * inner + i] = draw();
    return dense;
}

static int report(const char *name, int group, int threads, double worst, double largest) {
    const double error = worst / (largest > 0 ? largest : 1);
    printf("%s, group %d, %d threads: %.1e\n", name, group, threads, error);
    return !(error < 1e-5);
}

static int check_rows(int count, int channels, int rows, int group, int threads) {
    float *dense = draw_weights(rows, channels, 1, group), *bias = make(sizeof(float) * rows);
    float *x = make(sizeof(float) * count * channels), *y = make(sizeof(float) * count * rows);
    for (int i = 0; i < rows; i++) bias[i] = draw();
    for (int i = 0; i < count * channels; i++) x[i] = draw();
    const Conv conv = pack(dense, bias, rows, channels, 1, group, 24);
    const int64_t stride = (int64_t)CELL * (channels + rows);
    float *scratch = make(sizeof(float) * stride * threads);
    Step step = {.next = &conv, .image = x, .output = y, .elements = count, .threads = threads, .scratch = scratch};
    step.scratch_stride = stride, step.scratch_first = (int64_t)CELL * channels;
    ovs_rows(&step);
    double worst = 0, largest = 0;
    for (int i = 0; i < count; i++)
        for (int row = 0; row < rows; row++) {
            double sum = bias[row];
            for (int c = 0; c < channels; c++) sum += (double)dense[row * channels + c] * x[i * channels + c];
            worst = fmax(worst, fabs(sum - y[i * rows + row])), largest = fmax(largest, fabs(sum));
        }
    drop(&conv), free(dense), free(bias), free(x), free(y), free(scratch);
    return report("linear", group, threads, worst, largest);
}

static int64_t place(int channels, int c, int y, int x) {
    const int lane = y / PATCH * 4 + x / PATCH;
    return ((int64_t)(y % PATCH) * channels + c) * CELL + x % PATCH * LANES + lane;
}

static int check_spatial(int channels, int rows, int group, int threads) {
    int32_t masks[2][PATCH + 3][LANES];
    uint8_t full[PATCH + 3];
    for (int i = 0; i < PATCH + 3; i++) {
        full[i] = 1;
        for (int lane = 0; lane < LANES; lane++)
            for (int axis = 0; axis < 2; axis++) {
                const int at = (axis ? lane % 4 : lane / 4) * PATCH + i - 1;
                masks[axis][i][lane] = at >= 0 && at < SIDE && i - 1 <= PATCH ? -1 : 0;
                if (!masks[axis][i][lane]) full[i] = 0;
            }
    }
    const Layout layout = {1, 1, 4, PATCH, PATCH, 1, masks[0][0], masks[1][0], full, full};
    float *dense = draw_weights(rows, channels, 9, group), *bias = make(sizeof(float) * rows);
    const int64_t guard = 64, cells = (int64_t)PATCH * CELL;
    float *memory = make(sizeof(float) * (cells * channels + 2 * guard)), *map = memory + guard;
    float *out = make(sizeof(float) * cells * rows);
    for (int i = 0; i < rows; i++) bias[i] = draw();
    for (int64_t i = 0; i < cells * channels; i++) map[i] = draw();
    const Conv conv = pack(dense, bias, rows, channels, 9, group, 5);
    const int64_t stride = 5 * WINDOW * LANES + 64;
    float *scratch = make(sizeof(float) * stride * threads);
    Step step = {.from = &layout, .spatial = &conv, .source = map, .next_out = out, .elements = 1, .threads = threads};
    step.scratch = scratch, step.scratch_stride = stride;
    ovs_spatial(&step);
    double worst = 0, largest = 0;
    for (int row = 0; row < rows; row++)
        for (int y = 0; y < SIDE; y++)
            for (int x = 0; x < SIDE; x++) {
                double sum = bias[row];
                for (int c = 0; c < channels; c++)
                    for (int tap = 0; tap < 9; tap++) {
                        const int v = y + tap / 3 - 1, u = x + tap % 3 - 1;
                        if (v < 0 || v >= SIDE || u < 0 || u >= SIDE) continue;
                        sum += (double)dense[(row * channels + c) * 9 + tap] * map[place(channels, c, v, u)];
                    }
                sum = sum > 0 ? sum : 0;
                worst = fmax(worst, fabs(sum - out[place(rows, row, y, x)])), largest = fmax(largest, sum);
            }
    drop(&conv), free(dense), free(bias), free(memory), free(out), free(scratch);
    return report("3x3", group, threads, worst, largest);
}

int main(void) {
    int failed = 0;
    for (int threads = 1; threads <= 3; threads += 2)
        for (int group = 1; group <= 4; group += 3) {
            failed |= check_rows(150, 70, 36, group, threads);
            failed |= check_rows(64, 7, 8, group, threads);
            failed |= check_spatial(13, 12, group, threads);
        }
    return failed;
}
