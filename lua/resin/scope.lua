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
-- In a coroutine the path of layers (check.lua) changes hands in the same places: containers there begin with an empty path,
-- and while user code runs the path is that of whoever resumed the coroutine.

local lib = require "resin.lib"
local check = require "resin.check"
local ffi, C, stats = lib.ffi, lib.C, lib.stats

local setmetatable, getmetatable, type, pairs, xpcall, error = setmetatable, getmetatable, type, pairs, xpcall, error
local collectgarbage, select, min, max = collectgarbage, select, math.min, math.max
local gc, release = ffi.gc, lib.C.rs_tensor_release
local running, around = coroutine.running, check.around
local copy_path, put_aside, put_back = check.copy_path, check.put_aside, check.put_back

---@class resin.Tensor
local Tensor = {}
check.Tensor = Tensor

local scope = { Tensor = Tensor }

-- The active scope: {n = count, parent, child = scope or false, ended = boolean, [1..n] = tensors}. child is the scope that was
-- started inside and has not ended: after an error the chain of children is what has to be freed.
local current = false
function check.in_scope() return current end

-- While resin's code runs in a coroutine: that coroutine, and the path of its resumer (false when empty). In the main thread
-- thread is false; host is nil there and in user code, where the resumer's path is in place. What user code finds in thread has
-- no meaning; everything that makes a scope active sets it.
local thread, host = false, nil

-- ---- memory that Lua's collector cannot see --------------------------------------------------------------------------------

-- The least limit is what a core's cache holds: garbage that is reused before it has left the cache makes a small op five times
-- cheaper than garbage that piles up. It grows while collecting takes more than MUCH of the time (a large Lua heap), and
-- shrinks again while it takes less than LITTLE.
local FLOOR, CEILING, MUCH, LITTLE = 1.5 * 1024 * 1024, 64 * 1024 * 1024, 0.75, 0.3
local least, limit, last = FLOOR, FLOOR, 0

---Collects garbage tensors, then sets the next limit from what survived.
function scope.collect()
  local begin = C.rs_time()
  collectgarbage()
  local now = C.rs_time()
  local share = (now - begin) / (now - last)
  if share > MUCH then least = min(least * 2, CEILING) elseif share < LITTLE then least = max(least / 2, FLOOR) end
  last = now
  local survived = stats.live_bytes
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
    s.n = n
    s[n] = t
    return t
  end
  return setmetatable({ h = gc(h, release), s = false }, Tensor)
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

---Frees a tensor now. Later use of it is an error; freeing it twice is allowed.
---@param t resin.Tensor
function scope.free(t)
  local h = t.h
  if not h then return end
  if t.s then t.s = false else gc(h, nil) end
  t.h = false
  C.rs_tensor_release(h)
end

-- ---- scopes --------------------------------------------------------------------------------------------------------------

-- Ended scopes for reuse: their lists have grown to the size that a container needs.
local pool, pooled = {}, 0

local function new(reusable)
  return { n = 0, parent = false, child = false, ended = false, reusable = reusable }
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

-- Moves a result out of s. Plain tables are searched for tensors.
local function keep(s, value, depth)
  if type(value) ~= "table" then return end
  local mt = getmetatable(value)
  if mt == Tensor then
    if value.s == s then
      local parent = s.parent
      while parent and parent.ended do parent = parent.parent end
      value.s = parent
      if parent then
        local n = parent.n + 1
        parent.n = n
        parent[n] = value
      else
        gc(value.h, release)
      end
    end
  elseif mt == nil and depth < 8 then
    for _, v in pairs(value) do keep(s, v, depth + 1) end
  end
end

-- Frees what is still in s.
local function finish(s)
  for i = 1, s.n do
    local t = s[i]
    s[i] = false
    if t.s == s then
      local h = t.h
      t.h = false
      t.s = false
      C.rs_tensor_release(h)
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
  local co = running()
  if co then return run_in(co, fn, a, b, c, d, e, f, g, h) end
  thread = false
  local depth = check.depth
  local s = enter()
  return returned(depth, s, xpcall(fn, check.handler, a, b, c, d, e, f, g, h))
end

local function resumed(s, ...)
  current, thread = s, false
  return ...
end

local function resumed_in(s, co, path, outer, ...)
  current, thread, host = s, co, put_aside()
  put_back(path)
  around[co] = outer
  return ...
end

-- Gives what a scope holds so far to the collector.
local function let_go(s)
  for i = 1, s.n do
    if s[i].s == s then promote(s[i]) end
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
  current, host = false, nil
  return resumed_in(s, co, path, outer, fn(...))
end
jit.off(resumed_in)    -- both read `...` after calls (see leave)
jit.off(call_in)

---Runs a user's function outside the active scope and returns its results.
function scope.call(fn, ...)
  local s = current
  if not s then return fn(...) end
  if thread then return call_in(s, thread, fn, ...) end
  current = false
  return resumed(s, fn(...))
end

-- ---- for users -----------------------------------------------------------------------------------------------------------

local create, resume, status, yield = coroutine.create, coroutine.resume, coroutine.status, coroutine.yield

-- What the coroutine of a user's scope gave back: results, a yield to pass on, or an error. `path` is the resumer's path;
-- `state` the resumer's thread and host.
local function step(co, s, outer, path, state, ok, ...)
  local inside = host ~= nil         -- it stopped outside of containers: the path is its own
  if inside or not ok then put_back(path) end
  thread, host = state.thread, state.host
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
