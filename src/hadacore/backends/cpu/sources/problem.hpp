// The interface between Python (native.py fills a Problem) and the kernels, and between the kernels and the threads.
#pragma once
#include <stdint.h>

// Element codes, in the order of native.py.
enum Element : int64_t { FLOAT32 = 0, FLOAT64 = 1, FLOAT16 = 2, BFLOAT16 = 3 };

enum Status : int64_t { DONE = 0, OUT_OF_MEMORY = 1, UNKNOWN_ELEMENT = 2, UNKNOWN_INSTRUCTION_SET = 3, UNSUPPORTED = 4 };

// Transforms of `size = order << log2` consecutive elements. A row of x has `row_length` elements, a multiple of size,
// that lie densely; rows are addressed by `dimensions` lengths and strides in elements, first dimension outermost.
// With `columns`, of a power of two without a base matrix, the elements of a row lie `x_step` and `out_step` apart
// instead, and at each of those addresses there begin `columns` rows that are neighbours.
// `base` and `signs` are in the type that is computed in: double for float64, else float.
struct Problem {
    const void* x;
    void* out;  // x itself, or memory apart from it
    int64_t element;
    int64_t row_length;
    int64_t order;     // m of the base matrix, 1 for powers of two
    int64_t log2;      // k of the Sylvester factor
    int64_t dimensions;
    const int64_t* shape;
    const int64_t* x_strides;
    const int64_t* out_strides;
    const void* base;   // order x order, row by row, already transposed for an inverse; null for a power of two
    const void* signs;  // row_length values of +1 and -1, or null
    int64_t signs_after;
    double scale;
    int64_t threads;
    int64_t columns;  // or 0
    int64_t x_step;
    int64_t out_step;
    int64_t instruction_set;  // index into the names of hadacore_instruction_set_name
};

// Codes of formats.py's encodings, and of the types of scales.
enum CodeType : int64_t { CODE_E4M3 = 0, CODE_E5M2 = 1, CODE_E2M1 = 2, CODE_INT8 = 3, CODE_INT4 = 4 };
enum ScaleType : int64_t { SCALE_GIVEN = 0, SCALE_FLOAT = 1, SCALE_E8M0 = 2, SCALE_E4M3 = 3 };

// What happens to the rows of a Problem instead of being rounded to its element type: its `out` is not looked at, and its
// rows are numbered as codes and scales are, row-major.
struct Quantization {
    void* codes;   // one a byte, or two, rows without gaps
    void* scales;  // fp32, or a byte each; null where the scale is given
    int64_t encoding;
    int64_t scale_type;
    int64_t block;   // consecutive elements that share a scale, a divisor of the row's length
    int64_t blocks;  // of a row
    int64_t scale_row_stride;
    int64_t scale_block_stride;
    int64_t swizzled;          // scales are in the order of layouts.py's `swizzle`, and have no strides
    int64_t largest_exponent;  // of the encoding, which an E8M0 scale is lowered by
    float amax_factor;         // of the largest magnitude, before it becomes a scale
    float given;               // the tensor's scale; with E4M3 scales the global one, 1 without
};

// A range of work: [begin, end) of what parallel_for counts.
using Range = void (*)(void* context, int64_t begin, int64_t end);

// Calls `range` on pieces of [0, count) of about `grain` each, on up to `threads` threads including this one, and
// returns when all are done. What a piece computes must not depend on where it begins.
void parallel_for(int64_t count, int64_t grain, int64_t threads, Range range, void* context);

// Memory of a thread: what a transform computes in, and where its results wait for a quantizer.
enum ScratchUse { SCRATCH_ROW = 0, SCRATCH_TILE = 1, SCRATCH_USES = 2 };

// At least `bytes` of memory that belongs to the calling thread until it asks again for the same use, aligned to 64 bytes;
// null if there is none.
void* thread_scratch(int64_t bytes, ScratchUse use = SCRATCH_ROW);
