-- Charges counters in one step, by the server's time.
--
-- ARGV[1] is 1 when either all charges are carried out or none. Then seven for each key: the
-- meter (0 fixed window, 1 sliding window, 2 token bucket), the limit, what fits, the window's or
-- period's length in seconds, the hits, what to do (0 count, 1 count if they fit, 2 give back),
-- and the lifetime of a fixed window in seconds.
--
-- Answers four for each key: what counted before, what counts (or would count) after, whether the
-- charge was carried out, and the seconds until hits that did not fit would, or nothing counts any more.
local SECOND = 1000000
local time = redis.call('TIME')
local now = time[1] * SECOND + time[2]

local counters, charges, carry_out = {}, {}, true

local function load_counter(key, meter, limit, span)
  local c = { key = key, meter = meter, limit = limit, span = span, pending = 0, change = 0 }
  if meter == 0 then
    c.count = math.max(tonumber(redis.call('GET', key) or 0), 0)
  elseif meter == 1 then
    c.window = math.floor(now / (span * SECOND))
    local held = redis.call('HMGET', key, 'window', 'count', 'previous')
    local window = tonumber(held[1] or -9)
    c.count, c.previous = 0, 0
    if window >= c.window then
      c.window, c.count, c.previous = window, tonumber(held[2]), tonumber(held[3])
    elseif window == c.window - 1 then
      c.previous = tonumber(held[2])
    end
  else
    local held = redis.call('HMGET', key, 'missing', 'at')
    local passed = math.max(now - tonumber(held[2] or now), 0)
    -- In units of which the period in microseconds make one token.
    c.missing = math.max(tonumber(held[1] or 0) - passed * limit, 0)
  end
  return c
end

local function used(c)
  if c.meter == 0 then
    return c.count
  elseif c.meter == 1 then
    local length = c.span * SECOND
    local left = math.min(math.max((c.window + 1) * length - now, 0), length)
    return c.count + math.ceil(c.previous * left / length)
  end
  return math.ceil(c.missing / (c.span * SECOND))
end

local function apply(c, hits)
  c.changed = true
  if c.meter == 2 then
    c.missing = math.max(c.missing + hits * c.span * SECOND, 0)
  else
    local count = math.max(c.count + hits, 0)
    c.change, c.count = c.change + count - c.count, count
  end
end

local function resets_in(c, charge, after)
  local target = 0
  if after > charge.capacity then
    target = math.max(charge.capacity - math.max(charge.hits, 1), 0)
  end
  if c.meter == 0 then
    return 0
  elseif c.meter == 1 then
    local to_end = math.ceil(((c.window + 1) * c.span * SECOND - now) / SECOND)
    local fading, fixed, ends = c.previous, c.count, to_end
    if c.count > target then
      fading, fixed, ends = c.count, 0, to_end + c.span
    end
    if fading == 0 then return math.max(to_end, 1) end
    return math.max(ends - math.floor(math.max(target - fixed, 0) * c.span / fading), 1)
  end
  local micros = math.max(c.missing - target * c.span * SECOND, 0) / math.max(c.limit, 1)
  return math.max(math.ceil(micros / SECOND), 1)
end

local function save(c, lifetime)
  if c.meter == 0 then
    redis.call('INCRBY', c.key, string.format('%.0f', c.change))
    if redis.call('TTL', c.key) < 0 then redis.call('EXPIRE', c.key, lifetime) end
    return
  end
  local seconds
  if c.meter == 1 then
    redis.call('HSET', c.key, 'window', string.format('%.0f', c.window),
      'count', string.format('%.0f', c.count), 'previous', string.format('%.0f', c.previous))
    seconds = 2 * c.span + 1
  else
    redis.call('HSET', c.key, 'missing', string.format('%.0f', c.missing),
      'at', string.format('%.0f', now))
    seconds = math.ceil(c.missing / math.max(c.limit, 1) / SECOND) + 1
  end
  redis.call('EXPIRE', c.key, string.format('%.0f', seconds))
end

for i, key in ipairs(KEYS) do
  local at = 1 + (i - 1) * 7
  local charge = {
    capacity = tonumber(ARGV[at + 3]), hits = tonumber(ARGV[at + 5]),
    action = ARGV[at + 6], lifetime = ARGV[at + 7],
  }
  local c = counters[key]
  if not c then
    c = load_counter(key, tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2]), tonumber(ARGV[at + 4]))
    counters[key] = c
  end
  charge.counter = c
  charge.before = used(c) + c.pending
  charge.fits = true
  if charge.action == '2' then
    charge.after = math.max(charge.before - charge.hits, 0)
  else
    charge.after = charge.before + charge.hits
    charge.fits = charge.after <= charge.capacity
  end
  if ARGV[1] == '1' then
    c.pending = c.pending + charge.after - charge.before
    carry_out = carry_out and charge.fits
  elseif charge.fits or charge.action == '0' then
    if charge.action == '2' then apply(c, -charge.hits) else apply(c, charge.hits) end
    charge.after, charge.charged = used(c), 1
  end
  charges[i] = charge
end

local answer = {}
for i, charge in ipairs(charges) do
  local c = charge.counter
  if ARGV[1] == '1' then
    if carry_out then
      if charge.action == '2' then apply(c, -charge.hits) else apply(c, charge.hits) end
      charge.charged = 1
    end
  end
  answer[4 * i - 3], answer[4 * i - 2] = charge.before, charge.after
  answer[4 * i - 1], answer[4 * i] = charge.charged or 0, resets_in(c, charge, charge.after)
end
for i, charge in ipairs(charges) do
  if charge.counter.changed then
    save(charge.counter, charge.lifetime)
    charge.counter.changed = false
  end
end
return answer
