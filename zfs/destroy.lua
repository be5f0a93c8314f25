-- Destroys a dataset and what of its snapshots is Cowshed's own, or nothing. See program_linux.go.
--
-- It names at most 16 of the datasets and snapshots that are in the way, so that its answer always fits.
--
-- Arguments: the dataset; the snapshot that it was made from, or "-"; full names of snapshots that were views
-- of processes that are gone.

local argv = (...)["argv"]
local dataset, origin = argv[1], argv[2]
local dead = {}
for i = 3, #argv do dead[argv[i]] = true end

if not zfs.exists(dataset) then
	return {errno = 2, blockers = {}} -- ENOENT
end

local sealed = dataset .. "@layer"
local clones_from = dataset .. "@cowshed-clone-"
local own, blockers, more, was_sealed = {}, {}, false, false

local function block(name)
	if #blockers == 16 then more = true else table.insert(blockers, name) end
end

for child in zfs.list.children(dataset) do block(child) end
for snapshot in zfs.list.snapshots(dataset) do
	local used = false
	for clone in zfs.list.clones(snapshot) do
		used = true
		block(clone)
	end
	if snapshot == sealed then
		was_sealed = true
	elseif dead[snapshot] or string.sub(snapshot, 1, string.len(clones_from)) == clones_from then
		table.insert(own, snapshot)
	elseif not used then
		block(snapshot)
	end
end
if #blockers > 0 then
	return {errno = 16, blockers = blockers, more = more} -- EBUSY
end

if was_sealed then table.insert(own, sealed) end

-- What is mounted is busy, maybe where Cowshed cannot see it. Nothing is destroyed then. A dataset that has snapshots
-- cannot be checked for its own destruction; rolling it back needs the same.
for _, snapshot in ipairs(own) do
	local errno = zfs.check.destroy(snapshot)
	if errno ~= 0 then return {errno = errno, blockers = {}, busy = snapshot} end
end
if #own > 0 and zfs.check.rollback(dataset) == 16 then
	return {errno = 16, blockers = {}, busy = dataset}
end
for _, snapshot in ipairs(own) do
	local errno = zfs.sync.destroy(snapshot)
	if errno ~= 0 then return {errno = errno, blockers = {}, busy = snapshot} end
end
local errno = zfs.sync.destroy(dataset)
if errno ~= 0 then return {errno = errno, blockers = {}, busy = dataset} end

-- The snapshot that was taken for this clone alone, whose dataset lives on.
if string.match(origin, "@cowshed%-clone%-") and zfs.exists(origin) then
	local used = false
	for _ in zfs.list.clones(origin) do used = true end
	if not used then zfs.sync.destroy(origin) end
end
return {errno = 0, blockers = {}}
