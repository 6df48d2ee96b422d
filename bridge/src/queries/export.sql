-- The registry and the policies as one document.
select @extschema@.ext_export()
