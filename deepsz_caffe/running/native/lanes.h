/* The products for one instruction set, SET, with VECTOR floats a register; see rows.h. */

#define LANES 1
#define PART float
#include "rows.h"

#define LANES 4
#define PART quad
#include "rows.h"

#define LANES 8
#if VECTOR == 4
#define PART quad
#else
#define PART eight
#endif
#include "rows.h"

#define LANES 16
#if VECTOR == 4
#define PART quad
#elif VECTOR == 8
#define PART eight
#else
#define PART sixteen
#endif
#include "rows.h"

static rows_function *const NAME(functions, SET)[4][KINDS] = {
    TABLE(NAME(NAME(rows, 1), SET)), TABLE(NAME(NAME(rows, 4), SET)), TABLE(NAME(NAME(rows, 8), SET)),
    TABLE(NAME(NAME(rows, 16), SET))};

#undef SET
#undef VECTOR
#undef TARGET
