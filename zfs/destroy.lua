-- Destroys a dataset and what of its snapshots is Cowshed's own, or nothing. Then it destroys the datasets that were set
-- aside and were kept for this one alone. See program_linux.go.
--
-- It names at most 16 of the datasets and snapshots that are in the way, so that its answer always fits.
--
-- Arguments: the dataset; the beginning of the names of datasets that were set aside; full names of snapshots that
-- were views of processes that are gone.

local ENOENT, EBUSY, EEXIST = 2, 16, 17

local argv = (...)["argv"]
local removed = argv[2]
local dead = {}
for i = 3, #argv do dead[argv[i]] = true end

local function begins(name, with) return string.sub(name, 1, string.len(with)) == with end

local function has_clones(snapshot)
	for _ in zfs.list.clones(snapshot) do return true end
	return false
end

-- Nobody has a view of a dataset that was set aside. What is left of one is Cowshed's own there.
local function is_own(dataset, snapshot)
	return dead[snapshot] or begins(snapshot, dataset .. "@cowshed-clone-")
		or begins(dataset, removed) and begins(snapshot, dataset .. "@cowshed-view-")
end

-- Lists the snapshots that are Cowshed's own, that which seals the dataset last.
local function look(dataset)
	local sealed = dataset .. "@layer"
	local found = {own = {}, blockers = {}}
	local was_sealed = false
	local function block(name)
		if #found.blockers == 16 then found.more = true else table.insert(found.blockers, name) end
	end
	for child in zfs.list.children(dataset) do block(child) end
	for snapshot in zfs.list.snapshots(dataset) do
		local used = has_clones(snapshot)
		if used then found.cloned = true end
		if snapshot == sealed then
			was_sealed = true
		elseif is_own(dataset, snapshot) then
			table.insert(found.own, snapshot)
		elseif not used or zfs.get_prop(snapshot, "defer_destroy") ~= "on" then
			block(snapshot)
		end
	end
	if was_sealed then table.insert(found.own, sealed) end
	return found
end

-- What is mounted is busy, maybe where Cowshed cannot see it. Nothing is destroyed then. A dataset that has snapshots
-- cannot be checked for its own destruction; rolling it back needs the same.
local function find_busy(dataset, found)
	for _, snapshot in ipairs(found.own) do
		local errno = zfs.check.destroy(snapshot)
		if errno ~= 0 and errno ~= EEXIST then return errno, snapshot end
	end
	if (found.cloned or #found.own > 0) and zfs.check.rollback(dataset) == EBUSY then return EBUSY, dataset end
end

local function destroy(dataset)
	local found = look(dataset)
	if #found.blockers > 0 then
		return {errno = EBUSY, blockers = found.blockers, more = found.more}
	end
	local errno, busy = find_busy(dataset, found)
	if busy then return {errno = errno, blockers = {}, busy = busy} end
	if found.cloned then return {errno = EEXIST, blockers = {}} end
	for _, snapshot in ipairs(found.own) do
		errno = zfs.sync.destroy(snapshot)
		if errno ~= 0 then return {errno = errno, blockers = {}, busy = snapshot} end
	end
	errno = zfs.sync.destroy(dataset)
	if errno ~= 0 then return {errno = errno, blockers = {}, busy = dataset} end
	return {errno = 0, blockers = {}}
end

-- Frees what of a dataset that was set aside no clone has: snapshots, and what was written after the last of them.
local function shrink(dataset, has_shrunk)
	local found = look(dataset)
	if #found.blockers > 0 or find_busy(dataset, found) then return end
	for _, snapshot in ipairs(found.own) do
		if not has_clones(snapshot) and zfs.sync.destroy(snapshot) == 0 then has_shrunk = false end
	end
	if not has_shrunk then zfs.sync.rollback(dataset) end
end

local dataset = argv[1]
if not zfs.exists(dataset) then
	return {errno = ENOENT, blockers = {}}
end
local set_aside = begins(dataset, removed)
local origin = zfs.get_prop(dataset, "origin")
local result = destroy(dataset)
if result.errno == EEXIST and set_aside then shrink(dataset, false) end
if result.errno ~= 0 then return result end

while origin and origin ~= "" do
	local source = string.match(origin, "^[^@]*")
	if not begins(source, removed) then
		-- The snapshot that was taken for this clone alone, whose dataset lives on.
		-- It may have gone with the clone already.
		if string.match(origin, "@cowshed%-clone%-") and zfs.exists(origin) and not has_clones(origin) then zfs.sync.destroy(origin) end
		break
	end
	origin = zfs.get_prop(source, "origin")
	local errno = destroy(source).errno
	if errno == EEXIST then shrink(source, true) end
	if errno ~= 0 then break end
	set_aside = true
end
if set_aside then zfs.sync.destroy(removed) end -- it stays if there are more datasets in it
return result
