/*
** A vector of one register for the element type REAL, to be included once for each type: BITS is the integer of that size,
** N(name) the name for the type. Vectors of the compiler, so the same text serves every instruction set.
*/
typedef REAL N(vec) __attribute__((vector_size(4 * RSI_LANES)));
typedef REAL N(uvec) __attribute__((vector_size(4 * RSI_LANES), aligned(sizeof(REAL)), may_alias));
typedef BITS N(mask) __attribute__((vector_size(4 * RSI_LANES)));
typedef REAL N(vec4) __attribute__((vector_size(16)));
#if RSI_LANES > 4
typedef REAL N(vec8) __attribute__((vector_size(32)));
#endif
enum { N(L) = 4 * RSI_LANES / (int)sizeof(REAL) };

static inline N(vec) N(load)(const REAL *p) { return *(const N(uvec) *)p; }
static inline N(vec) N(all)(REAL x) { return x - (N(vec)){0}; }

/* Sum of the lanes: halves are added until four or two are left. */
static inline REAL N(lanes)(N(vec) v) {
#if RSI_LANES == 16
  N(vec8) half[2];
  __builtin_memcpy(half, &v, sizeof half);
  const N(vec8) w = half[0] + half[1];
#elif RSI_LANES == 8
  const N(vec8) w = v;
#endif
#if RSI_LANES > 4
  N(vec4) quarter[2];
  __builtin_memcpy(quarter, &w, sizeof quarter);
  const N(vec4) u = quarter[0] + quarter[1];
#else
  const N(vec4) u = v;
#endif
  if (sizeof(REAL) == sizeof(double)) return u[0] + u[1];
  return (u[0] + u[2 % (16 / sizeof(REAL))]) + (u[1] + u[3 % (16 / sizeof(REAL))]);
}
