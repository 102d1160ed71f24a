/*
** The smallest test harness. A test is a function `static void name(void)`. ENSURE leaves it at the first failure and says
** where; RUN(name) runs it and counts; TEST_RESULT ends main. A test that passes prints nothing.
*/
#ifndef RESIN_TEST_H
#define RESIN_TEST_H

#include <math.h>
#include <stdio.h>
#include <string.h>

static int test_passed, test_failed, test_broken;

#define TEST_FAIL(...)                                                                                                      \
  do {                                                                                                                      \
    fprintf(stderr, "%s:%d: %s: ", __FILE__, __LINE__, __func__);                                                           \
    fprintf(stderr, __VA_ARGS__);                                                                                           \
    fputc('\n', stderr);                                                                                                    \
    test_broken = 1;                                                                                                        \
    return;                                                                                                                 \
  } while (0)

#define ENSURE(cond)          do { if (!(cond)) TEST_FAIL("not true: %s", #cond); } while (0)
#define ENSURE_OK(expr)       do { if ((expr) != RS_OK) TEST_FAIL("%s failed: %s", #expr, rs_last_error()); } while (0)
#define ENSURE_STATUS(expr, want)                                                                                           \
  do {                                                                                                                      \
    const rs_status got_ = (expr);                                                                                          \
    if (got_ != (want)) TEST_FAIL("%s gave %s, not %s", #expr, rs_status_name(got_), rs_status_name(want));                 \
  } while (0)
#define ENSURE_NUM(a, b)                                                                                                    \
  do {                                                                                                                      \
    const double a_ = (double)(a), b_ = (double)(b);                                                                        \
    if (!(a_ >= b_ && a_ <= b_)) TEST_FAIL("%s is %.17g, not %.17g", #a, a_, b_);                                           \
  } while (0)
#define ENSURE_NEAR(a, b, tol)                                                                                              \
  do {                                                                                                                      \
    const double a_ = (double)(a), b_ = (double)(b);                                                                        \
    if (!(fabs(a_ - b_) <= (tol))) TEST_FAIL("%s is %.17g, not near %.17g", #a, a_, b_);                                    \
  } while (0)
#define ENSURE_TEXT(a, b)     do { if (strcmp(a, b) != 0) TEST_FAIL("%s is \"%s\", not \"%s\"", #a, a, b); } while (0)
#define ENSURE_HAS(a, b)      do { if (strstr(a, b) == NULL) TEST_FAIL("%s is \"%s\", without \"%s\"", #a, a, b); } while (0)

#define RUN(name)                                                                                                           \
  do {                                                                                                                      \
    test_broken = 0;                                                                                                        \
    name();                                                                                                                 \
    if (test_broken) test_failed++; else test_passed++;                                                                     \
  } while (0)

#define TEST_RESULT() (printf("%s: %d passed, %d failed\n", __FILE__, test_passed, test_failed), test_failed > 0)

#endif
