-- Nodes whose gradient Lua computes: checkpoints and reversible layers.
-- C never calls Lua. A backward that comes to such a node returns RS_HOST with the walk put aside; `continue` computes the
-- gradients, often with a backward of its own, hands them in and goes on. What a node needs is kept here under a number that
-- the node's token holds. Invariant: an entry lives as long as its node; the token's storage says whether somebody but us still
-- uses it, and entries whose node is gone are dropped when new ones come.

local lib = require "resin.lib"
local check = require "resin.check"
local create = require "resin.create"
local scope = require "resin.scope"
local ffi, C, ctx = lib.ffi, lib.C, lib.ctx

local host = {}

local live, count, limit, last = {}, 0, 16, 0

local function drop(id)
  local entry = live[id]
  live[id] = nil
  count = count - 1
  scope.free(entry.token)
  if entry.release then entry.release(entry.data) end
end

local function sweep()
  for id, entry in pairs(live) do
    if C.rs_tensor_is_shared(entry.token.h) == 0 then drop(id) end
  end
  limit = math.max(16, 2 * count)
end

--- Refuses to be recorded: a program has no place where Lua computes gradients.
---@param what string  the layer
function host.check_recording(what)
  if C.rs_is_tracing(ctx) ~= 0 then
    check.fail("%s: it cannot be recorded where gradients are wanted, because its backward runs layers again in Lua; in a compiled "
      .. "training step call its layers without it", what)
  end
end

--- Makes `value`, computed without gradients, depend on the inputs. compute(data, grad) gives the list of their gradients (false for
--- none) when a backward comes; release(data) is called when it cannot come any more.
---@param value resin.Tensor
---@param inputs resin.Tensor[]
---@param data any
---@param compute fun(data: any, grad: resin.Tensor): table
---@param release? fun(data: any)
function host.attach(value, inputs, data, compute, release)
  if count >= limit then sweep() end
  local n = #inputs
  local handles = ffi.new("rs_tensor *[?]", n + 1)
  for i = 1, n do handles[i - 1] = inputs[i].h end
  last = last + 1
  local token = scope.promote(create.full({}, last, {dtype = "f64"}))
  check.status(C.rs_host(ctx, value.h, handles, n, token.h))
  live[last] = {token = token, data = data, compute = compute, release = release}
  count = count + 1
end

--- How many nodes there are now; for tests.
---@return integer
function host.count()
  sweep()
  return count
end

local out_token, out_grad = ffi.new("rs_tensor *[1]"), ffi.new("rs_tensor *[1]")

local function compute(entry, grad) return entry.compute(entry.data, grad) end

-- One node: its gradients are computed and handed in. Returns the status of what follows.
local function step(walk)
  check.status(C.rs_walk_state(walk, out_token, out_grad))
  local token, grad = scope.wrap(out_token[0]), scope.wrap(out_grad[0])
  local id = token:item()
  scope.free(token)
  local entry = live[id]
  local grads = scope.run(compute, entry, grad)
  scope.free(grad)
  local n = 0
  for i in pairs(grads) do n = math.max(n, i) end
  local handles = ffi.new("rs_tensor *[?]", n + 1)
  for i = 1, n do handles[i - 1] = grads[i] and grads[i].h or nil end
  return id, grads, handles, n
end

--- Goes on with the backward that just returned RS_HOST.
function host.continue()
  local walk = C.rs_suspended_walk(ctx)
  while walk ~= nil do
    local depth = check.depth
    local ok, id, grads, handles, n = xpcall(step, check.handler, walk)
    if not ok then
      C.rs_walk_cancel(walk)
      error(id, 0)
    end
    check.depth = depth
    local rc = C.rs_walk_resume(walk, handles, n)
    for i = 1, n do
      if grads[i] then scope.free(grads[i]) end
    end
    if live[id] and C.rs_tensor_is_shared(live[id].token.h) == 0 then drop(id) end
    if rc ~= C.RS_HOST then check.status(rc) end
    walk = C.rs_suspended_walk(ctx)          -- NULL when there is no further node
  end
end

return host
