/* Draws of a Key on the CPU: from an element's place to Threefry's words, to the law, to memory, a block at a time.

   compiled.py builds this file and calls `draw`. Every operation is one that IEEE 754 rounds exactly, in the order of
   the eager draw (inverse.py, numerics/exact.py), and products and sums are not contracted: equal bits on all CPUs. */

#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef __FAST_MATH__
#error "Values would depend on the compiler."
#endif

#define BLOCK 1024 /* values in turn, in the nearest cache */

enum { UNIFORM, CENTRAL, NORMAL };
enum { FLOAT32, BFLOAT16, FLOAT16 };

typedef struct {
    int64_t size, to, at; /* its length, and its strides in the tensor and in the whole */
} axis;

typedef struct {
    /* of InverseCdf.numbers() */
    float factor, middle, scale, low, high, shift, least, most;
    /* of numerics/exact.py: the logarithm, and the inverse error function's branches, up to `limit` and beyond */
    float log2, log[5], limit, near_middle, near[9], far_middle, far[9];
} numbers;

/* --- Threefry-2x32 of 20 rounds: both words of a counter, one xor the other --- */

#define ROUND(by) x0 += x1, x1 = (x1 << by | x1 >> (32 - by)) ^ x0
#define EVEN ROUND(13), ROUND(15), ROUND(26), ROUND(6)
#define ODD ROUND(17), ROUND(29), ROUND(16), ROUND(24)

static inline uint32_t threefry(uint32_t x0, uint32_t x1, uint32_t k0, uint32_t k1) {
    const uint32_t k2 = k0 ^ k1 ^ 0x1BD11BDA;
    x0 += k0, x1 += k1;
    EVEN, x0 += k1, x1 += k2 + 1;
    ODD, x0 += k2, x1 += k0 + 2;
    EVEN, x0 += k0, x1 += k1 + 3;
    ODD, x0 += k1, x1 += k2 + 4;
    EVEN, x0 += k2, x1 += k0 + 5;
    return x0 ^ x1;
}

/* --- laws --- */

static inline float clamp(float x, float low, float high) {
    x = x < low ? low : x;
    return x > high ? high : x;
}

static inline float polynomial(const float *coefficients, int count, float x) {
    float value = coefficients[0] * x + coefficients[1];
    for (int i = 2; i < count; i++) value = value * x + coefficients[i];
    return value;
}

static inline float minus_log(float a, const numbers *n) {
    int32_t word, exponent;
    memcpy(&word, &a, sizeof a);
    exponent = (word - 0x3F3504F3) >> 23; /* of a number from sqrt(1/2) to sqrt(2) */
    word -= exponent * (1 << 23);
    memcpy(&a, &word, sizeof a);
    const float s = (a - 1) / (a + 1);
    return -(polynomial(n->log, 5, s * s) * s + (float)exponent * n->log2);
}

static inline float uniform(uint32_t bits, const numbers *n) {
    return ((float)(int32_t)(bits >> 9) * 0x1p-23f * n->factor + n->middle) * n->scale;
}

static inline float normal(uint32_t bits, const numbers *n, int is_central) {
    const float x = clamp((float)(int32_t)bits * n->factor + n->middle, n->low, n->high);
    const float w = minus_log((1 + x) * (1 - x), n);
    float factor = polynomial(n->near, 9, w - n->near_middle);
    if (!is_central) {
        const float far = polynomial(n->far, 9, sqrtf(w) - n->far_middle);
        factor = w < n->limit ? factor : far;
    }
    return x * factor * n->scale + n->shift;
}

/* --- to the nearest number of 16 bits, of two equally near the even one; none is larger than these can be --- */

static inline uint16_t bfloat16(float x) {
    uint32_t word;
    memcpy(&word, &x, sizeof x);
    return (uint16_t)((word + 0x7FFF + (word >> 16 & 1)) >> 16);
}

static inline uint16_t float16(float x) {
    uint32_t word, small;
    memcpy(&word, &x, sizeof x);
    const uint32_t sign = word >> 16 & 0x8000, size = word & 0x7FFFFFFF;
    const float shifted = fabsf(x) + 0.5f; /* whose last place is that of float16's subnormal numbers */
    memcpy(&small, &shifted, sizeof shifted);
    const uint32_t rounded = (size + 0xFFF + (size >> 13 & 1) - (112u << 23)) >> 13;
    return (uint16_t)(sign | (size < 0x38800000 ? small - 0x3F000000 : rounded));
}

/* --- memory --- */

/* For `count` elements from `first` on, in the order of the axes, where each is in the tensor (if asked) and in the whole. */
static void places(const axis *axes, int rank, int64_t first, int count, int64_t start, int64_t *to, uint32_t *lower,
                   uint32_t *upper) {
    const axis last = axes[rank - 1];
    for (int done = 0, run; done < count; done += run) {
        int64_t rest = first + done, in_tensor = 0, in_whole = start;
        const int64_t begin = rest % last.size;
        rest /= last.size;
        for (int d = rank - 2; d >= 0; d--) {
            in_tensor += rest % axes[d].size * axes[d].to;
            in_whole += rest % axes[d].size * axes[d].at;
            rest /= axes[d].size;
        }
        run = last.size - begin < count - done ? (int)(last.size - begin) : count - done;
        in_tensor += begin * last.to;
        in_whole += begin * last.at;
        if (last.at == 1)
            for (int i = 0; i < run; i++) {
                lower[done + i] = (uint32_t)in_whole + (uint32_t)i;
                upper[done + i] = (uint32_t)(in_whole >> 32) + (lower[done + i] < (uint32_t)in_whole);
            }
        else
            for (int i = 0; i < run; i++) {
                lower[done + i] = (uint32_t)(in_whole + i * last.at);
                upper[done + i] = (uint32_t)((in_whole + i * last.at) >> 32);
            }
        for (int i = 0; to && i < run; i++) to[done + i] = in_tensor + i * last.to;
    }
}

#define STORE(type, convert)                                                   \
    if (dense)                                                                 \
        for (int i = 0; i < count; i++) ((type *)out)[begin + i] = convert(x[i]); \
    else                                                                       \
        for (int i = 0; i < count; i++) ((type *)out)[to[i]] = convert(x[i])

void draw(void *out, int dtype, const axis *axes, int rank, int64_t first, int64_t size, int64_t start, uint32_t k0,
          uint32_t k1, int law, const numbers *given) {
    const numbers local = *given, *n = &local;
    const int dense = rank == 1 && axes[0].to == 1;
    int64_t to[BLOCK];
    uint32_t lower[BLOCK], upper[BLOCK];
    float x[BLOCK];
    for (int64_t begin = first; begin < first + size; begin += BLOCK) {
        const int count = first + size - begin < BLOCK ? (int)(first + size - begin) : BLOCK;
        places(axes, rank, begin, count, start, dense ? 0 : to, lower, upper);
        for (int i = 0; i < count; i++) lower[i] = threefry(upper[i], lower[i], k0, k1);
        if (law == UNIFORM)
            for (int i = 0; i < count; i++) x[i] = uniform(lower[i], n);
        else if (law == CENTRAL)
            for (int i = 0; i < count; i++) x[i] = normal(lower[i], n, 1);
        else
            for (int i = 0; i < count; i++) x[i] = normal(lower[i], n, 0);
        for (int i = 0; i < count; i++) x[i] = clamp(x[i], n->least, n->most);
        if (dtype == FLOAT32) {
            STORE(float, );
        } else if (dtype == BFLOAT16) {
            STORE(uint16_t, bfloat16);
        } else {
            STORE(uint16_t, float16);
        }
    }
}
