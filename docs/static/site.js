// A page opened as a file may not fetch the pages that search found, so their excerpts are left out there.
if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
