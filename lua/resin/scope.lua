-- Who frees a tensor.
-- A tensor is a table {h = rs_tensor *, s = scope or false} that owns one C reference. Outside a scope the handle has the C
-- function rs_tensor_release as its finaliser. Inside a scope it has none: the tensor is on the scope's list and released
-- when the scope ends, unless it is among the results. Invariants: t.s is the one scope whose list frees t; t.h is false
-- once the reference is gone; a tensor with t.s == false has a finaliser. A list may still name a tensor that left it (t.s
-- is then another scope or false); the end of the scope skips it.
--
-- A scope belongs to the code that runs between its start and its end, not to a coroutine. Containers suspend theirs around
-- user code, so a yield never happens while one is active; resin.scope runs its function in a coroutine of its own and puts
-- the scope aside when that yields.
-- An error inside a scope is seen in one of two ways. scope.run protects its outermost call. A residual container whose layers are
-- all resin's own enters an open scope instead, without a protected call: check.lua calls unwind before it raises, scope.call
-- protects what user code could raise, and an error of another kind (an interrupt, a full stack) leaves a stale open scope, which
-- is found by looking at the stack when memory is collected or the next error is raised. Why: a trace that starts below a
-- protected call cannot return through it, so LuaJIT gives up compiling what stands there.
-- What runs on every call is written for the compiler: no inner loop, no `...`, no tail call of a C function.
-- In a coroutine the path of layers (check.lua) changes hands in the same places: containers there begin with an empty path,
-- and while user code runs the path is that of whoever resumed the coroutine.

local lib = require "resin.lib"
local check = require "resin.check"
local ffi, C, stats = lib.ffi, lib.C, lib.stats

local setmetatable, getmetatable, type, pairs, xpcall, error = setmetatable, getmetatable, type, pairs, xpcall, error
local collectgarbage, select, min, max = collectgarbage, select, math.min, math.max
local gc, release = ffi.gc, lib.C.rs_tensor_release
local getinfo, getlocal = debug.getinfo, debug.getlocal
local running, around = coroutine.running, check.around
local copy_path, put_aside, put_back = check.copy_path, check.put_aside, check.put_back

---@class resin.Tensor
local Tensor = {}
check.Tensor = Tensor

local scope = { Tensor = Tensor }

-- The active scope: {n = count, parent, child = scope or false, ended = boolean, depth of the path before it, [1..n] = tensors}.
-- child is the scope that was started inside and has not ended: after an error the chain of children is what has to be freed.
local current = false
function check.in_scope() return current end

-- The outermost container scope while it is open, else false: current is then that scope or one inside it.
local open = false

-- While resin's code runs in a coroutine: that coroutine, and the path of its resumer (false when empty). In the main thread
-- thread is false; host is nil there and in user code, where the resumer's path is in place. What user code finds in thread has
-- no meaning; everything that makes a scope active sets it. nil: an open scope that has not asked yet, with an empty path around.
local thread, host = false, nil

-- ---- memory that Lua's collector cannot see --------------------------------------------------------------------------------

-- The least limit is what a core's cache holds: garbage that is reused before it has left the cache makes a small op five times
-- cheaper than garbage that piles up. It grows while collecting takes more than MUCH of the time (a large Lua heap), and
-- shrinks again while it takes less than half of that. Once more is alive than the cache holds, MUCH is little: nothing is lost then.
local FLOOR, CEILING = 1.5 * 1024 * 1024, 64 * 1024 * 1024
local MUCH, MUCH_OF_LARGE = 0.7, 0.02
local least, limit, last = FLOOR, FLOOR, 0

---Collects garbage tensors, then sets the next limit from what survived.
function scope.collect()
  scope.heal()
  local begin = C.rs_time()
  collectgarbage()
  local now = C.rs_time()
  local share, survived = (now - begin) / (now - last), stats.live_bytes
  local much = survived > 4 * FLOOR and MUCH_OF_LARGE or MUCH
  if share > much then least = min(least * 2, CEILING) elseif share < much / 2 then least = max(least / 2, FLOOR) end
  last = now
  limit = survived * 1.5
  if limit < least then limit = least end
end
local collect = scope.collect

-- ---- wrapping ------------------------------------------------------------------------------------------------------------

---Makes a tensor of a handle and takes over its reference.
---@return resin.Tensor
function scope.wrap(h)
  if stats.live_bytes > limit then collect() end
  local s = current
  if s then
    local t = setmetatable({ h = h, s = s }, Tensor)
    local n = s.n + 1
    s[n] = t
    s.n = n
    return t
  end
  local t = setmetatable({ h = gc(h, release), s = false }, Tensor)
  return t
end

---Takes a tensor out of its scope: it lives as long as it is referenced.
---@param t resin.Tensor
---@return resin.Tensor t
function scope.promote(t)
  if t.s then
    t.s = false
    gc(t.h, release)
  end
  return t
end
local promote = scope.promote

---What compile.lua does when a tensor is freed that a recording met.
function scope.recorded_freed() end

---Frees a tensor now. Later use of it is an error; freeing it twice is allowed.
---@param t resin.Tensor
function scope.free(t)
  local h = t.h
  if not h then return end
  if C.rs_tensor_was_recorded(h) ~= 0 then scope.recorded_freed(h) end
  if t.s then t.s = false else gc(h, nil) end
  t.h = false
  C.rs_tensor_release(h)
end

---Frees t, which belongs to the active scope `here`, right after the layer that read it made its result: then t stands last but
---one in the list, and its place is given back.
---@param t resin.Tensor
function scope.free_last(here, t)
  local h = t.h
  if not h then return end
  t.s, t.h = false, false
  C.rs_tensor_release(h)
  local n = here.n
  if here[n - 1] == t then
    here[n - 1] = here[n]
    here[n] = false
    here.n = n - 1
  end
end

-- ---- scopes --------------------------------------------------------------------------------------------------------------

-- Ended scopes for reuse: their lists have grown to the size that a container needs.
local pool, pooled = {}, 0

local function new(reusable)
  -- The first places lie in the array part of the table.
  return { false, false, false, false, false, false, false, false,
    n = 0, parent = false, child = false, ended = false, depth = 0, reusable = reusable }
end

local function start(s)
  local outer = current
  s.parent = outer
  if outer then outer.child = s end
  current = s
  return s
end

---Starts a scope. An error between enter and leave must be caught by scope.run further out.
function scope.enter()
  if pooled == 0 then return start(new(true)) end
  local s = pool[pooled]
  pooled = pooled - 1
  s.ended = false
  return start(s)
end
local enter = scope.enter

-- Gives a tensor to a scope, or to the collector.
local function hand_over(t, to)
  t.s = to
  if to then
    local n = to.n + 1
    to[n] = t
    to.n = n
  else
    gc(t.h, release)
  end
end

-- Moves a result out of s. Plain tables are searched for tensors.
local function keep(s, value, depth)
  if type(value) ~= "table" then return end
  local mt = getmetatable(value)
  if mt == Tensor then
    if value.s == s then
      local parent = s.parent
      while parent and parent.ended do parent = parent.parent end
      hand_over(value, parent)
    end
  elseif mt == nil and depth < 8 then
    for _, v in pairs(value) do keep(s, v, depth + 1) end
  end
end

local function drop(s, i)
  local t = s[i]
  s[i] = false
  if t and t.s == s then
    local h = t.h
    t.h, t.s = false, false
    C.rs_tensor_release(h)
  end
end

-- Frees what is still in s. Few are, so that there is no loop.
local function finish(s)
  local n = s.n
  if n > 0 then
    drop(s, 1)
    if n > 1 then
      drop(s, 2)
      if n > 2 then
        drop(s, 3)
        if n > 3 then
          drop(s, 4)
          for i = 5, n do drop(s, i) end
        end
      end
    end
  end
  s.ended = true
  s.n = 0
end

local function close(s)
  finish(s)
  local outer = s.parent
  if outer then outer.child = false end
  current = outer
  if s.reusable then
    pooled = pooled + 1
    pool[pooled] = s
  end
end

---Ends a scope; the results survive it.
function scope.leave(s, ...)
  -- All of `...` is read before anything is called: this LuaJIT's compiler may read it wrongly afterwards.
  local n = select("#", ...)
  if n == 1 then
    local a = ...
    keep(s, a, 0)
    close(s)
    return a
  elseif n == 2 then
    local a, b = ...
    keep(s, a, 0)
    keep(s, b, 0)
    close(s)
    return a, b
  elseif n == 0 then
    return close(s)
  end
  local results = { ... }
  for i = 1, n do keep(s, results[i], 0) end
  close(s)
  return unpack(results, 1, n)
end
local leave = scope.leave

---Puts the active scope aside, so that user code makes tensors of its own. Give the result to resume.
function scope.suspend()
  local s = current
  current = false
  return s
end

function scope.resume(s) current = s end

---The active scope, or nil.
function scope.current() return current or nil end

-- ---- open scopes ---------------------------------------------------------------------------------------------------------

-- An ended scope for the next open one.
local spare = false

---Starts an open scope. nil where there cannot be one: inside a container's scope, or where user code in a container or a
---coroutine that it resumed goes on; scope.run serves there. Its frame, scope.owner, holds it in a local variable until leave_open.
function scope.enter_open()
  local outer, depth = current, check.depth
  if outer then
    if outer.reusable then return nil end
  else
    if depth > 0 then return nil end
    thread = nil
  end
  local s = spare or new(true)
  spare = false
  s.ended, s.parent, s.depth = false, outer, depth
  if outer then outer.child = s end
  open = s           -- first: an interrupt may come in between
  current = s
  return s
end

---Ends an open scope; y and the tensors in `more` survive it.
function scope.leave_open(s, y, more)
  local outer = s.parent
  if y.s == s then hand_over(y, outer) end
  if more ~= nil then keep(s, more, 0) end
  finish(s)
  current = outer
  open = false
  spare = s
  if outer then
    outer.child = false
  elseif host ~= nil then
    put_back(host)
    host = nil
  end
end

-- The function that calls enter_open and leave_open; set by core.lua.
scope.owner = nil

-- Does the open scope o still run?
local function on_stack(o)
  for level = 2, 1e6 do
    local info = getinfo(level, "f")
    if not info then return false end
    if info.func == scope.owner then
      for i = 1, 250 do
        local name, value = getlocal(level, i)
        if not name then break end
        if value == o then return true end
      end
    end
  end
end
jit.off(on_stack)

-- Ends the open scope o and those inside it because an error is on its way, or left them long ago. What a stale scope holds may
-- have been made since, so it goes to the scope around or to the collector.
local function unwind(o, stale)
  local outer, s = o.parent, current
  open = false
  while s and s.reusable do
    if stale then
      for i = 1, s.n do
        local t = s[i]
        if t and t.s == s then hand_over(t, outer) end
      end
      s.n, s.ended = 0, true
    else
      finish(s)
    end
    if s == o then break end
    s = s.parent
  end
  if outer then outer.child = false end
  current = outer
  check.depth = o.depth
  if not outer and host ~= nil then
    put_back(host)
    host = nil
  end
end

---Before an error is raised: ends the open scope that it will leave. Gives false where there is none.
function check.unwind()
  local o = open
  if not o then return false end
  unwind(o, not on_stack(o))
  return true
end

---Ends an open scope that an error has left unseen.
function scope.heal()
  local o = open
  if o and not on_stack(o) then unwind(o, true) end
end

-- What a protected call in the open scope o gave. s is active again.
local function unguarded(s, o, ok, ...)
  open = o
  if ok then
    current = s
    return ...
  end
  check.unwind()
  error((...), 0)
end
jit.off(unguarded)

---Runs fn(...), which catches errors itself, so that none of them ends the open scope.
function scope.guard(fn, ...)
  local s, o = current, open
  if not o then return fn(...) end
  open = false
  return unguarded(s, o, xpcall(fn, check.handler, ...))
end

-- ---- protected scopes ----------------------------------------------------------------------------------------------------

-- After an error: ends s and every scope inside it, and makes `outer` active.
local function abandon(s, outer, depth)
  while s do
    finish(s)
    s = s.child
  end
  if outer then outer.child = false end
  current = outer
  check.depth = depth
end

local function finished(co, outer, s, ok, ...)
  if host ~= nil then put_back(host) end
  host = nil
  if ok then
    current = s
    return leave(s, ...)
  end
  around[co] = outer
  abandon(s, false, check.depth)
  error((...), 0)
end

jit.off(finished)      -- it reads `...` after calls (see leave)

-- scope.run as the outermost in a coroutine.
local function run_in(co, fn, a, b, c, d, e, f, g, h)
  thread, host = co, put_aside()
  return finished(co, around[co], enter(), xpcall(fn, check.handler, a, b, c, d, e, f, g, h))
end

local function returned(depth, s, ok, ...)
  if ok then
    current = s            -- a user function that yielded may have changed it
    return leave(s, ...)
  end
  local message = ...
  abandon(s, false, depth)
  error(message, 0)
end

---Runs fn(...) in a scope and returns its results. The outermost call is protected, so an error leaves no scope behind.
---@param fn function made once, not per call; at most 8 arguments
function scope.run(fn, a, b, c, d, e, f, g, h)
  if current then return leave(enter(), fn(a, b, c, d, e, f, g, h)) end
  local depth = check.depth
  local co = running()
  if co then return run_in(co, fn, a, b, c, d, e, f, g, h) end
  thread = false
  local s = enter()
  return returned(depth, s, xpcall(fn, check.handler, a, b, c, d, e, f, g, h))
end

local function resumed(s, ...)
  current, thread = s, false
  return ...
end

local function resumed_in(s, co, path, outer, o, ok, ...)
  current, thread, host = s, co, put_aside()
  put_back(path)
  around[co] = outer
  return unguarded(s, o, ok, ...)
end

-- Gives what a scope holds so far to the collector.
local function let_go(s)
  for i = 1, s.n do
    if s[i] and s[i].s == s then promote(s[i]) end
    s[i] = false
  end
  s.n = 0
end

-- scope.call in a coroutine.
local function call_in(s, co, fn, ...)
  local holder = s
  while holder do       -- the coroutine may stop in fn and never be resumed
    let_go(holder)
    holder = holder.parent
  end
  local path, outer = put_aside(), around[co]
  if path then around[co] = { path = path, outer = outer } end
  put_back(host)
  local o = open
  current, host, open = false, nil, false
  if not o then return resumed_in(s, co, path, outer, false, true, fn(...)) end
  return resumed_in(s, co, path, outer, o, xpcall(fn, check.handler, ...))
end
jit.off(resumed_in)    -- both read `...` after calls (see leave)
jit.off(call_in)

local function resumed_open(s, o, ok, ...)
  current, thread = s, false
  return unguarded(s, o, ok, ...)
end

-- scope.call in an open scope.
local function call_open(s, fn, ...)
  if thread == nil then
    thread = running() or false
    if thread then host = false end
  end
  if thread then return call_in(s, thread, fn, ...) end
  local o = open
  current, open = false, false
  return resumed_open(s, o, xpcall(fn, check.handler, ...))
end
jit.off(resumed_open)
jit.off(call_open)

---Runs a user's function outside the active scope and returns its results.
function scope.call(fn, ...)
  local s = current
  if not s then return fn(...) end
  if open then return call_open(s, fn, ...) end
  if thread then return call_in(s, thread, fn, ...) end
  current = false
  return resumed(s, fn(...))
end

check.call = scope.call

-- ---- for users -----------------------------------------------------------------------------------------------------------

local create, resume, status, yield = coroutine.create, coroutine.resume, coroutine.status, coroutine.yield

-- What the coroutine of a user's scope gave back: results, a yield to pass on, or an error. `path` is the resumer's path;
-- `state` the resumer's thread and host.
local function step(co, s, outer, path, state, ok, ...)
  local inside = host ~= nil         -- it stopped outside of containers: the path is its own
  if inside or not ok then put_back(path) end
  thread, host = state.thread, state.host
  scope.heal()
  if not ok then
    abandon(s, outer, check.depth)
    check.handler((...), co)
    error((...), 0)
  end
  if status(co) == "dead" then
    current = s
    local function done(...)
      current = outer
      return ...
    end
    return done(leave(s, ...))
  end
  -- It may never be resumed, so what it made so far goes to the collector.
  let_go(s)
  local inner = current
  current = outer
  local function continue(...)
    outer = current        -- who resumed us may be in another scope than before
    current = inner
    path, state.thread, state.host = copy_path(), thread, host
    thread, host = co, nil
    if inside then host = put_aside() end
    return step(co, s, outer, path, state, resume(co, ...))
  end
  return continue(yield(...))
end

---Runs fn(...) and frees every tensor made meanwhile, except those among the results.
---@param fn function
---@return any ... the results of fn
function scope.user(fn, ...)
  check.func(fn, "resin.scope: argument 1")
  scope.heal()
  local outer, caller = current, running()
  local s = start(new(false))
  local co = create(type(fn) == "function" and fn or function(...) return fn(...) end)
  local state, path = { thread = thread, host = host }, put_aside()
  -- The main thread stays where it is until this ends; a coroutine may be resumed from elsewhere, and has its own way around.
  around[co] = { path = not caller and path, outer = caller and around[caller] }
  thread, host = co, caller and path or false
  return step(co, s, outer, path, state, resume(co, ...))
end

-- These call what is never compiled, and read `...` after calls (see leave).
jit.off(step, true)
jit.off(scope.user, true)

return scope
