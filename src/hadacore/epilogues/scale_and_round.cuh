// scale_and_round.cuh: the epilogue of the plain transform.
//
// An epilogue gets the transformed values of a lane in fp32, before anything is rounded, and turns them into
// what is stored. This one multiplies by the scale, rounds once to the output type, and applies the signs of
// an inverse randomized transform.
//
//   in:  value[COUNT], the fp32 results of COUNT consecutive elements of one row
//   out: word[COUNT * output bytes / 4], packed

constexpr int kStoredBits = 8 * kOutputBytes;  // of an element

template <int COUNT, int PACKED_WORDS>
__device__ __forceinline__ void scale_and_round(u32 (&word)[COUNT * kOutputBytes / 4], const float (&value)[COUNT],
                                                float scale, const SignBits<PACKED_WORDS>& signs, int first_word) {
#pragma unroll
  for (int i = 0; i < COUNT * kOutputBytes / 4; ++i) {
    if (kSixteenBitOutput) word[i] = pack_pair(value[(2 * i) % COUNT] * scale, value[(2 * i + 1) % COUNT] * scale);
    else word[i] = mov_b32_f32(value[i % COUNT] * scale);
    if (SIGNS == SIGNS_AFTER) word[i] = signs.apply(first_word + i, word[i]);
  }
}
