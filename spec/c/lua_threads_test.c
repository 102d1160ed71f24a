/*
** One model in 8 threads of the operating system, each with a Lua state of its own, as a server runs it: every thread builds the
** residual model, loads the same weights, and must compute the same bits as the first, whatever the others do meanwhile.
*/
#include "test.h"
#include <lauxlib.h>
#include <lua.h>
#include <lualib.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum { THREADS = 8, TEXT = 4096 };

static const char script[] =
  "local build, weights, make = ...\n"
  "package.path = './lua/?.lua;./lua/?/init.lua;' .. build .. '/lua/?.lua;' .. package.path\n"
  "local resin = require 'resin'\n"
  "local nn = resin.nn\n"
  "resin.manual_seed(3)\n"
  "local model = nn.ResidualSequential(\n"
  "  nn.Record{name = 'a', need_projection = true}, nn.Linear(12, 20), nn.ReLU(), nn.LayerNorm(20),\n"
  "  nn.Record{name = 'b'}, nn.Linear(20, 20), nn.GELU(), nn.Apply{record_name = 'b', operation = 'gated'},\n"
  "  nn.Apply{record_name = 'a'}, nn.Linear(20, 5))\n"
  "if make then resin.save(weights, model:state_dict()) end\n"
  "model:load_state_dict((resin.load(weights)))\n"
  "local out = {}\n"
  "for i = 1, 200 do\n"
  "  local x = resin.arange(1, 36, 1, {dtype = 'f32'}):mul(i / 100):sin():reshape(3, 12)\n"
  "  local y = model(x)\n"
  "  y:sum():backward()\n"
  "  if i % 50 == 0 then out[#out + 1] = string.format('%.17g %.17g', y:sum():item(), y:abs():max():item()) end\n"
  "end\n"
  "out[#out + 1] = string.format('%.17g', model[2].weight.grad:abs():sum():item())\n"
  "return table.concat(out, ' ')\n";

typedef struct job { const char *weights; int make; char text[TEXT]; } job;

static void *run(void *arg) {
  job *const j = arg;
  const char *const build = getenv("B");
  lua_State *const L = luaL_newstate();
  luaL_openlibs(L);
  int bad = luaL_loadstring(L, script);
  if (!bad) {
    lua_pushstring(L, build ? build : "build");
    lua_pushstring(L, j->weights);
    lua_pushboolean(L, j->make);
    bad = lua_pcall(L, 3, 1, 0);
  }
  snprintf(j->text, TEXT, "%s%s", bad ? "error: " : "", lua_tostring(L, -1));
  lua_close(L);
  return NULL;
}

static void eight_states_compute_the_same(void) {
  static job first, jobs[THREADS];
  pthread_t threads[THREADS];
  char weights[] = "/tmp/resin-threads-XXXXXX";
  const int file = mkstemp(weights);
  ENSURE(file >= 0);
  first = (job){weights, 1, ""};
  run(&first);
  for (int i = 0; i < THREADS; i++) {
    jobs[i] = (job){weights, 0, ""};
    ENSURE(pthread_create(&threads[i], NULL, run, &jobs[i]) == 0);
  }
  for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
  remove(weights);
  ENSURE(strncmp(first.text, "error", 5) != 0 || (fprintf(stderr, "%s\n", first.text), 0));
  for (int i = 0; i < THREADS; i++) ENSURE_TEXT(jobs[i].text, first.text);
}

int main(void) {
  RUN(eight_states_compute_the_same);
  return TEST_RESULT();
}
