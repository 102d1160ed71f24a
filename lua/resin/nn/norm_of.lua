--- The norm that a user's class, or function that makes a layer, makes for a number of features: for blocks with an option for it.

local class = require "resin.nn.class"

local MOST = 32     -- groups of a GroupNorm of which only the class was given (Wu and He 2018 take 32)

-- The largest divisor of n that is at most MOST.
local function groups_of(n)
  local groups = math.min(MOST, n)
  while n % groups ~= 0 do groups = groups - 1 end
  return groups
end

--- given(features); of GroupNorm, whose first argument is the number of groups, as many groups as divide the features, 32 at most.
---@param given table|function  a class or a function
---@param features integer
---@return any
return function(given, features)
  local list = type(given) == "table" and class.is_plain(given.arguments) and given.arguments or {}
  if list[1] and list[1][1] == "num_groups" then return given(groups_of(features), features) end
  return given(features)
end
