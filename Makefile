# resin: build, test, install. `make` alone prints the targets.

# ---- settings ----------------------------------------------------------------------------------------------------------
CC      ?= gcc
CFLAGS  ?= -O2 -g
PREFIX  ?= /usr/local
DESTDIR ?=
BLAS    ?= openblas# openblas or none
ONEDNN  ?= yes#      yes or no
LUA     ?= luajit
BUSTED  ?= busted
B       ?= build#    where everything that is built goes

# ---- nothing to change below ---------------------------------------------------------------------------------------------
VERSION := 0.1.0
WARN    := -Wall -Wextra -Wshadow -Wconversion -Wdouble-promotion -Wstrict-prototypes
DEFS    := -D_GNU_SOURCE -DRSI_INTERNAL -DRS_VERSION_STRING='"$(VERSION)"'
LIBS    := -ljansson -lz -lm -lpthread
BLAS    := $(strip $(BLAS))
ONEDNN  := $(strip $(ONEDNN))
B       := $(strip $(B))
ifeq ($(BLAS),openblas)
  DEFS += -DRSI_WITH_BLAS
  LIBS += -ldl
endif
ifeq ($(ONEDNN),yes)
  DEFS += -DRSI_WITH_ONEDNN
  LIBS += -ldnnl -lgomp
endif
LEVELS := baseline
ifneq ($(findstring x86_64,$(shell $(CC) -dumpmachine 2>/dev/null || uname -m)),)
  DEFS   += -DRSI_X86
  LEVELS := baseline avx2 avx512
  ISA_baseline := -march=x86-64-v2 -DRSI_ISA_LEVEL=0
  ISA_avx2     := -march=x86-64-v3 -DRSI_ISA_LEVEL=1
  ISA_avx512   := -march=x86-64-v4 -mprefer-vector-width=512 -DRSI_ISA_LEVEL=2
else
  ISA_baseline := -DRSI_ISA_LEVEL=0
endif
ALL_CFLAGS = -std=c11 $(CFLAGS) $(WARN) $(DEFS) -fPIC -fvisibility=hidden -fno-semantic-interposition -Isrc -I$(B) -MMD -MP
# Never -ffast-math: linked into a library it would switch the host's processor to flush denormals.
LOOPS = -O3 -fno-math-errno -fno-trapping-math -ffp-contract=fast

SOURCES := $(filter-out src/tools/%,$(filter-out src/kernels/%,$(wildcard src/*.c src/*/*.c))) src/kernels/select.c
KERNELS := $(filter-out src/kernels/select.c,$(wildcard src/kernels/*.c))
OBJECTS := $(SOURCES:%.c=$(B)/obj/%.o) $(foreach l,$(LEVELS),$(KERNELS:%.c=$(B)/obj/%.$(l).o))
LIB     := $(B)/libresin.so
CTESTS  := $(patsubst spec/c/%.c,$(B)/test/%,$(wildcard spec/c/*_test.c))
# Rebuild everything when a setting changes.
STAMP   := $(B)/settings
SETTING := $(CC) $(CFLAGS) $(BLAS) $(ONEDNN) $(VERSION)

# V=1 shows the commands.
ifeq ($(V),)
  SAY = @echo "  $(1) $(patsubst $(B)/%,%,$@)";
else
  SAY =
endif

.PHONY: help deps build demo run-demo check test run-tests check-asan check-tsan compare lint bench bench-threads asan ubsan tsan install uninstall clean docs force
.DELETE_ON_ERROR:

help:
	@echo "make deps     install what is missing (apt; as root or through sudo)"
	@echo "make build    $(B)/libresin.so and $(B)/resin, the launcher"
	@echo "make demo     train a residual network on Fashion-MNIST, save it, load it again, predict"
	@echo "make check    the fast tests (under a minute)"
	@echo "make test     every test"
	@echo "make lint     warnings of two compilers, luacheck, includes, naming"
	@echo "make bench    speed, beside PyTorch when it is installed (ONLY=name,name THREADS=1,2 PEERS=eager,compile,onnxruntime SECONDS=2"
	@echo "              PATIENCE=20 to wait for a quiet machine, DTYPE=bf16, MEASURE=memory, MODE=eager without compiling)"
	@echo "make bench-threads   our pool beside OpenMP, idle and with a busy core (BLOCKS=10), on a quiet machine of two cores"
	@echo "make asan     the tests under AddressSanitizer; likewise ubsan, tsan"
	@echo "make compare  200 random models beside torchresidual and torch-circuit, where Python has them"
	@echo "make docs     docs/ops.md from the op table"
	@echo "make install  into PREFIX (now $(PREFIX)); DESTDIR is respected"
	@echo "make clean    remove $(B)"
	@echo "settings: CC=$(CC) CFLAGS=\"$(CFLAGS)\" BLAS=$(BLAS) ONEDNN=$(ONEDNN) B=$(B)"

deps:
	@BLAS=$(BLAS) ONEDNN=$(ONEDNN) sh src/tools/deps.sh

build: $(LIB) $(B)/resin

$(STAMP): force
	@mkdir -p $(B)
	@echo '$(SETTING)' | cmp -s - $@ || echo '$(SETTING)' > $@

$(B)/obj/src/kernels/%.baseline.o: src/kernels/%.c $(STAMP)
	@mkdir -p $(@D)
	$(call SAY,CC)$(CC) $(ALL_CFLAGS) $(LOOPS) $(ISA_baseline) -c $< -o $@
$(B)/obj/src/kernels/%.avx2.o: src/kernels/%.c $(STAMP)
	@mkdir -p $(@D)
	$(call SAY,CC)$(CC) $(ALL_CFLAGS) $(LOOPS) $(ISA_avx2) -c $< -o $@
$(B)/obj/src/kernels/%.avx512.o: src/kernels/%.c $(STAMP)
	@mkdir -p $(@D)
	$(call SAY,CC)$(CC) $(ALL_CFLAGS) $(LOOPS) $(ISA_avx512) -c $< -o $@
$(B)/obj/%.o: %.c $(STAMP)
	@mkdir -p $(@D)
	$(call SAY,CC)$(CC) $(ALL_CFLAGS) -c $< -o $@

# The generator is linked with the engine, reads its op table and writes what follows from it.
$(B)/opgen: $(B)/obj/src/tools/opgen.o $(OBJECTS)
	$(call SAY,CC)$(CC) $(CFLAGS) $^ $(LDFLAGS) $(LIBS) -o $@
$(B)/ops_api.c: $(B)/opgen src/resin.h
	$(call SAY,GEN)$(B)/opgen $(B) src/resin.h
$(B)/obj/ops_api.o: $(B)/ops_api.c
	$(call SAY,CC)$(CC) $(filter-out -DRSI_INTERNAL,$(ALL_CFLAGS)) -c $< -o $@
$(LIB): $(OBJECTS) $(B)/obj/ops_api.o
	$(call SAY,CC)$(CC) $(CFLAGS) -shared -Wl,-soname,libresin.so.0 -Wl,-z,defs -Wl,-Bsymbolic $^ $(LDFLAGS) $(LIBS) -o $@
	@ln -sf libresin.so $@.0
$(B)/resin: src/tools/resin.sh
	@mkdir -p $(@D)
	sed 's|@SOURCE@|$(CURDIR)|' $< > $@ && chmod +x $@

# A host with Lua states of its own; it loads the library as any script does.
$(B)/test/lua_threads_test: spec/c/lua_threads_test.c $(LIB)
	@mkdir -p $(@D)
	$(call SAY,CC)$(CC) -std=c11 $(CFLAGS) $(WARN) -D_GNU_SOURCE -Isrc -I$(B) $$(pkg-config --cflags luajit) $< \
	  $(LDFLAGS) $$(pkg-config --libs luajit) -lpthread -lm -o $@
$(B)/test/%: spec/c/%.c $(OBJECTS) $(B)/obj/ops_api.o
	@mkdir -p $(@D)
	$(call SAY,CC)$(CC) $(ALL_CFLAGS) $< $(filter %.o,$^) $(LDFLAGS) $(LIBS) -o $@

# The peak of the machine at hand, so with what it has.
$(B)/bench/peak: bench/peak.c
	@mkdir -p $(@D)
	$(call SAY,CC)$(CC) -std=c11 -O2 -march=native -ffp-contract=fast $(WARN) -D_GNU_SOURCE $< -o $@ -lpthread
# It measures what is inside, so it is linked with the objects.
$(B)/bench/threads: bench/threads.c bench/threads_work.h $(OBJECTS) $(B)/obj/ops_api.o
	@mkdir -p $(@D)
	$(call SAY,CC)$(CC) $(ALL_CFLAGS) $< $(filter %.o,$^) $(LDFLAGS) $(LIBS) -o $@
$(B)/bench/%: bench/%.c $(LIB)
	@mkdir -p $(@D)
	$(call SAY,CC)$(CC) -std=c11 $(CFLAGS) $(WARN) -D_GNU_SOURCE -Isrc -I$(B) $< -L$(B) -lresin -Wl,-rpath,'$$ORIGIN/..' -o $@

# deps may install the compiler itself, so what follows is a make of its own.
demo: deps
	@$(MAKE) --no-print-directory run-demo
run-demo: build
	$(B)/resin examples/fashion_mnist.lua --out $(B)/fashion_mnist.safetensors
	$(B)/resin examples/fashion_mnist.lua --predict $(B)/fashion_mnist.safetensors

check: build $(CTESTS)
	B=$(B) $(LUA) spec/run.lua --fast
test: deps
	@$(MAKE) --no-print-directory run-tests
run-tests: build $(CTESTS)
	MAKE="$(MAKE)" B=$(B) $(LUA) spec/run.lua --all

# Sanitizers: the same tests in a build of their own. The Lua interpreter is not instrumented, so the runtime is preloaded.
asan:
	$(MAKE) B=$(B)/asan CFLAGS="-O1 -g -fsanitize=address -fno-omit-frame-pointer" check-asan
ubsan:
	$(MAKE) B=$(B)/ubsan CFLAGS="-O1 -g -fsanitize=undefined -fno-sanitize-recover=undefined" check
tsan:
	$(MAKE) B=$(B)/tsan CFLAGS="-O1 -g -fsanitize=thread" BLAS=none ONEDNN=no check-tsan
check-asan: build $(CTESTS)
	SANITIZER=asan PRELOAD=$$($(CC) -print-file-name=libasan.so) B=$(B) $(LUA) spec/run.lua --fast
check-tsan: $(CTESTS)
	SANITIZER=tsan B=$(B) $(LUA) spec/run.lua --c-only

lint:
	@$(MAKE) --no-print-directory deps
	CC="$(CC)" B=$(B) sh src/tools/lint.sh

# Random residual models beside torchresidual and torch-circuit, when Python has them.
compare: build
	RESIN=$(B)/resin python3 spec/seeds/compare.py --count 200

bench: build $(B)/bench/peak $(B)/bench/eager
	B=$(B) env -u OPENBLAS_CORETYPE $(B)/resin bench/run.lua --only "$(ONLY)" --threads "$(or $(THREADS),1,2)" \
	  --peers "$(PEERS)" --seconds "$(SECONDS)" --patience "$(PATIENCE)" --mode "$(MODE)" --dtype "$(DTYPE)" --measure "$(MEASURE)"

bench-threads: $(B)/bench/threads
	env -u OPENBLAS_CORETYPE -u OMP_WAIT_POLICY -u OMP_NUM_THREADS -u GOMP_SPINCOUNT $(B)/bench/threads $(BLOCKS)

docs: build
	cp $(B)/ops.md docs/ops.md

install: build
	install -d $(DESTDIR)$(PREFIX)/lib $(DESTDIR)$(PREFIX)/include $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/share/lua/5.1/resin
	install -m 755 $(LIB) $(DESTDIR)$(PREFIX)/lib/libresin.so.0
	ln -sf libresin.so.0 $(DESTDIR)$(PREFIX)/lib/libresin.so
	install -m 644 src/resin.h $(B)/resin_ops.h $(DESTDIR)$(PREFIX)/include
	cp -R lua/resin/. $(DESTDIR)$(PREFIX)/share/lua/5.1/resin
	cp -R $(B)/lua/resin/. $(DESTDIR)$(PREFIX)/share/lua/5.1/resin
	install -m 755 $(B)/resin $(DESTDIR)$(PREFIX)/bin/resin

uninstall:
	rm -rf $(DESTDIR)$(PREFIX)/share/lua/5.1/resin $(DESTDIR)$(PREFIX)/bin/resin $(DESTDIR)$(PREFIX)/lib/libresin.so* \
	  $(DESTDIR)$(PREFIX)/include/resin.h $(DESTDIR)$(PREFIX)/include/resin_ops.h

clean:
	rm -rf $(B)

-include $(OBJECTS:.o=.d) $(B)/obj/src/tools/opgen.d $(B)/obj/ops_api.d
